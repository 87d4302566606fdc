"""Fine-tune the rendering net on one presenter's own clip, and keep it only where held-back frames say so."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import av

from retalk_models.engine import person_file
from retalk_models.talkin.basis import ExpressionBasis
from retalk_models.talkin.corpus import ClipEntry
from retalk_models.talkin.crop_corpus import CropClip, build, read
from retalk_models.talkin.render_scores import Scores, evaluate
from retalk_models.talkin.render_trainer import Recipe, Trainer
from retalk_models.talkin.rendernet import RenderNet, load_net, save_net

_HELD_BACK = 0.3
"""The clip's last part, by which the gain is measured."""

_LEAST_FRAMES = 150
_MOST_FRAMES = 1500
_HELD_BACK_NAME = "held back"

_LEAST_GAIN_DB = 0.1
"""Less on the lips is not worth another file."""


@dataclass(frozen=True, slots=True)
class Gain:
    """Scores on the clip's held-back frames. kept: where the weights lie, None where they were not better."""

    before: Scores
    after: Scores
    kept: Path | None


def adaptation_recipe(steps: int, seed: int) -> Recipe:
    """Gentle: the net knows mouths already and is to learn one."""
    return replace(
        Recipe(),
        seed=seed,
        steps=steps,
        rate=1e-3,
        average=0.98,
        adversary=0.0,
        # It knows already what either picture is worth; what is left to learn is to paint this one person.
        choosing_by=0.0,
        painting=0.0,
        own=0.0,
        held_out=(_HELD_BACK_NAME,),
    )


def working_folder(video: Path) -> Path:
    """Where an adaptation keeps tracks, crops and checkpoints unless told otherwise: in the user's cache.

    Each clip's content has its own. Raises FileNotFoundError for a clip that is not there.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    kept = (Path(cache) if cache else Path.home() / ".cache") / "retalk" / "adaptation"
    return kept / f"{video.stem}-{hashlib.sha256(_present(video).read_bytes()).hexdigest()[:12]}"


def _present(video: Path) -> Path:
    if not video.is_file():
        raise FileNotFoundError(f"{video}: no such file; --adapt takes a clip of the presenter")
    return video


def _check(video: Path) -> None:
    """Raise FileNotFoundError or ValueError for what no crops can be cut from."""
    with av.open(str(_present(video))) as container:
        if not container.streams.video:
            raise ValueError(f"{video}: there is no picture in it; --adapt takes a clip of the presenter")
        codec = container.streams.video[0].codec_context
        if codec.width % 2 or codec.height % 2:
            raise ValueError(f"{video}: {codec.width}x{codec.height}; --adapt needs an even width and height")


def split(clip: CropClip) -> list[CropClip]:
    """The clip's first part to learn from, and its last to measure by, ten frames apart."""
    count = len(clip.numbers)
    cut = round((1 - _HELD_BACK) * count)
    return [_frames(clip, "own", slice(0, cut)), _frames(clip, _HELD_BACK_NAME, slice(cut + 10, count))]


def _frames(clip: CropClip, person: str, frames: slice) -> CropClip:
    return replace(
        clip,
        person=person,
        planes=clip.planes[frames],
        points=clip.points[frames],
        poses=clip.poses[frames],
        numbers=clip.numbers[frames],
        openings=clip.openings[frames],
    )


def _run_name(net: RenderNet, recipe: Recipe) -> str:
    """The folder of a run: of what it starts from and how it goes on."""
    digest = hashlib.sha256(json.dumps(asdict(recipe)).encode())
    for name, value in net.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:12]


def adapt(video: Path, cache: Path, out: Path, steps: int, seed: int, device: str = "cpu") -> Gain:
    """Fine-tune on a clip and store the result beside it where it is better there than the bundled net.

    Raises FileNotFoundError for a clip that is not there, ValueError for one that is no video or has a face
    in too few frames.
    """
    crops = out / "crops"
    try:
        _check(video)
        print(f"looking for the face in {video.name}", flush=True)
        build([ClipEntry(video, None, False)], cache / "tracks", crops, ExpressionBasis.load(), _MOST_FRAMES)
    except av.error.FFmpegError as error:
        raise ValueError(f"{video}: cannot be read as a video ({error.strerror})") from error
    clips: Sequence[CropClip] = read(crops)
    count = len(clips[0].numbers) if clips else 0
    if count < _LEAST_FRAMES:
        raise ValueError(
            f"{video}: a face that can be drawn in {count or 'hardly any'} frames; --adapt needs "
            f"{_LEAST_FRAMES} or more of one person facing the camera"
        )
    net = load_net()
    recipe = adaptation_recipe(steps, seed)
    # A run of another release began elsewhere: it is not gone on from, and nothing has to be deleted by hand.
    run = out / _run_name(net, recipe)
    trainer = Trainer(recipe, split(clips[0]), run, device, net, tests_per_clip=24)
    before = evaluate(load_net().to(device), trainer.test, device)
    trainer.train()
    adapted = trainer.averaged()
    after = evaluate(adapted, trainer.test, device)
    better = after.lips_psnr - before.lips_psnr >= _LEAST_GAIN_DB and after.ssim >= before.ssim
    kept = person_file(video) if better else None
    if kept is not None:
        save_net(adapted, kept)
    report = {"before": asdict(before), "after": asdict(after), "kept": better, "steps": steps, "seed": seed}
    (out / "adaptation.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return Gain(before, after, kept)
