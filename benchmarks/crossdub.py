"""Cross-dub truth: dub clip A with clip B's own sound and compare the dubbed lips with B's true ones.

For every ordered pair (A, B) of the clips given, prints
  r         Pearson correlation of the dubbed lip opening with B's true opening, at the best lag within
            60 ms of zero;
  lag       the lag (ms) of the best correlation within 400 ms, + where the dub is late;
  spread    standard deviation of the dubbed opening over that of the truth;
  leak      partial correlation of the dubbed opening with A's original opening, given B's truth;
  loudness  the same r for the voice's loudness envelope in place of the dub (the mouth a level meter
            would drive).
Lip opening is the inner lips' distance (Face Mesh 13, 14) over the face's height (10, 152), re-tracked from
the written file by a fresh Face Mesh, so nothing that the engine believes about itself enters.

    python benchmarks/crossdub.py CLIP CLIP [CLIP ...] --out FOLDER [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

GRID_HZ = 50.0
NEAR_ZERO_S = 0.06
FAR_S = 0.4


@dataclass(frozen=True)
class Track:
    """Lip opening per frame: seconds and opening over face height (NaN where no face was found)."""

    seconds: F64
    opening: F64


@dataclass(frozen=True)
class Score:
    source: str
    voice: str
    r: float
    lag_ms: float
    spread: float
    leak: float
    loudness_r: float


def track_opening(path: Path) -> Track:
    """Re-track a file's lip opening with a fresh Face Mesh."""
    import mediapipe as mp

    seconds: list[float] = []
    opening: list[float] = []
    with (
        av.open(str(path)) as container,
        mp.solutions.face_mesh.FaceMesh(refine_landmarks=True, max_num_faces=1) as mesh,
    ):
        for frame in container.decode(video=0):
            rgb = frame.to_ndarray(format="rgb24")
            found = mesh.process(rgb).multi_face_landmarks
            seconds.append(float(frame.time or 0.0))
            if not found:
                opening.append(float("nan"))
                continue
            size = np.array([rgb.shape[1], rgb.shape[0]])
            at = {
                i: np.array([found[0].landmark[i].x, found[0].landmark[i].y]) * size
                for i in (10, 13, 14, 152)
            }
            opening.append(float(np.linalg.norm(at[13] - at[14]) / np.linalg.norm(at[10] - at[152])))
    return Track(np.array(seconds), np.array(opening))


def loudness(path: Path, grid: F64) -> F64:
    """RMS of the sound in 40 ms around each grid instant."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
    with av.open(str(path)) as container:
        parts = [r.to_ndarray()[0] for f in container.decode(audio=0) for r in resampler.resample(f)]
    pcm = np.concatenate(parts).astype(np.float64)
    power = np.convolve(pcm**2, np.ones(640) / 640, mode="same")
    return np.sqrt(np.interp(grid * 16_000, np.arange(len(power)), power))


def on_grid(track: Track, grid: F64) -> F64:
    """The track at the grid's instants; stretches without a face become NaN."""
    known = ~np.isnan(track.opening)
    if known.sum() < 10:
        return np.full_like(grid, np.nan)
    values = np.interp(grid, track.seconds[known], track.opening[known])
    nearest = np.abs(grid[:, None] - track.seconds[known][None, :]).min(axis=1)
    return np.where(nearest > 0.08, np.nan, values)


def pearson(a: F64, b: F64) -> float:
    known = ~(np.isnan(a) | np.isnan(b))
    if known.sum() < 10 or a[known].std() == 0 or b[known].std() == 0:
        return float("nan")
    return float(np.corrcoef(a[known], b[known])[0, 1])


def lagged(dub: F64, truth: F64, reach_s: float) -> tuple[float, float]:
    """Best Pearson r of dub(t + lag) with truth(t) for |lag| <= reach_s, and that lag in seconds."""
    steps = round(reach_s * GRID_HZ)
    best, best_lag = -2.0, 0
    for lag in range(-steps, steps + 1):
        a = dub[max(lag, 0) : len(dub) + min(lag, 0)]
        b = truth[max(-lag, 0) : len(truth) + min(-lag, 0)]
        r = pearson(a, b)
        if r > best:
            best, best_lag = r, lag
    return best, best_lag / GRID_HZ


def partial(x: F64, y: F64, given: F64) -> float:
    """Partial correlation of x and y given a third series."""
    known = ~(np.isnan(x) | np.isnan(y) | np.isnan(given))
    xy, xg, yg = (pearson(p[known], q[known]) for p, q in ((x, y), (x, given), (y, given)))
    return float((xy - xg * yg) / np.sqrt(max(1e-9, (1 - xg**2) * (1 - yg**2))))


def bounce(track: Track, seconds: F64) -> F64:
    """The original's opening under a dub longer than it: a ping-pong loop of its frames."""
    count = len(track.opening)
    step = float(np.median(np.diff(track.seconds)))
    period = 2 * max(count - 1, 1)
    index = np.round(seconds / step).astype(int)
    looped = index % period
    looped = np.where(looped >= count, period - looped, looped)
    inside = index < count
    direct = on_grid(track, seconds)
    return np.where(inside, direct, track.opening[looped])


def score(source: Path, voice: Path, tracks: dict[Path, Track], dubbed: Path) -> Score:
    dub, truth = track_opening(dubbed), tracks[voice]
    end = min(dub.seconds[-1], truth.seconds[-1])
    grid = np.arange(0.3, end, 1 / GRID_HZ)
    d, t = on_grid(dub, grid), on_grid(truth, grid)
    own = bounce(tracks[source], grid)
    near, _ = lagged(d, t, NEAR_ZERO_S)
    _, lag = lagged(d, t, FAR_S)
    loud, _ = lagged(loudness(voice, grid), t, NEAR_ZERO_S)
    known = ~(np.isnan(d) | np.isnan(t))
    return Score(
        source=source.stem,
        voice=voice.stem,
        r=near,
        lag_ms=1000 * lag,
        spread=float(d[known].std() / t[known].std()),
        leak=partial(d, own, t),
        loudness_r=loud,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the dubs; existing dubs are reused"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tracks = {clip: track_opening(clip) for clip in args.clips}
    scores: list[Score] = []
    print(f"{'source':28}{'voice':28}{'r':>7}{'lag ms':>8}{'spread':>8}{'leak':>7}{'loudness r':>12}")
    for source in args.clips:
        for voice in args.clips:
            dubbed = args.out / f"{source.stem}__{voice.stem}.mp4"
            if not dubbed.exists():
                command = [
                    sys.executable,
                    "-m",
                    "server.cli",
                    "dub",
                    source,
                    voice,
                    "-o",
                    dubbed,
                    "--consent",
                ]
                subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
            one = score(source, voice, tracks, dubbed)
            scores.append(one)
            print(
                f"{one.source:28}{one.voice:28}{one.r:7.2f}{one.lag_ms:8.0f}{one.spread:8.2f}{one.leak:7.2f}"
                f"{one.loudness_r:12.2f}",
                flush=True,
            )
    cross = [s for s in scores if s.source != s.voice]
    for name, rows in (("all pairs", scores), ("cross pairs", cross)):
        print(
            f"{name:56}{np.mean([s.r for s in rows]):7.2f}{np.mean([s.lag_ms for s in rows]):8.0f}"
            f"{np.mean([s.spread for s in rows]):8.2f}{np.mean([s.leak for s in rows]):7.2f}"
            f"{np.mean([s.loudness_r for s in rows]):12.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(s) for s in scores], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
