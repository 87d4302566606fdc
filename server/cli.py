"""The commands.

Everything heavy is imported inside the command that needs it, so that `retalk --help` answers at once.
"""

from __future__ import annotations

import getpass
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from server.console import (
    BadUsageError,
    ExitCode,
    configure_logging,
    guard,
    log,
    progress,
    silence_native_code,
    terminate_as_interrupt,
)

if TYPE_CHECKING:
    from server.settings import Settings

app = typer.Typer(
    name="retalk",
    help="Near-real-time dubbing: a face and a separate voice in, one synchronised stream out.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models = typer.Typer(help="Weights and model files.", rich_markup_mode=None)
train = typer.Typer(help="Reproduce the shipped weights.", rich_markup_mode=None)
app.add_typer(models, name="models")
app.add_typer(train, name="train")

Engine = Annotated[str | None, typer.Option("--engine", help="Which face re-talker; default: talkin.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda[:N]; default: auto.")]
LookAhead = Annotated[
    int | None,
    typer.Option(
        "--look-ahead-ms", help="Of the voice, before a mouth is drawn; talkin: 80 or 120, its own."
    ),
]
Config = Annotated[
    list[Path] | None,
    typer.Option("--config", help="A settings file, over configs/default.yaml; may be repeated."),
]
Host = Annotated[str | None, typer.Option("--host", help="Address to listen on; default: 127.0.0.1.")]
Port = Annotated[int | None, typer.Option("--port", help="Port to listen on; default: 8080.")]

MOST_SESSIONS = 64
DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "default.yaml"


@app.command()
def serve(
    config: Config = None,
    host: Host = None,
    port: Port = None,
    engine: Engine = None,
    device: Device = None,
    look_ahead_ms: LookAhead = None,
) -> None:
    """Serve the browser client, sessions over HTTP, and WebRTC."""
    from retalk_models.engine import check_choice

    settings = read_settings(
        config, host=host, port=port, engine=engine, device=device, look_ahead_ms=look_ahead_ms
    )
    check_choice(settings.engine, settings.device, settings.look_ahead_ms)
    configure_logging(settings.log_level)
    from server.app import serve as run

    run(settings)


@app.command()
def dub(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video file or a still image.")],
    audio: Annotated[Path, typer.Argument(metavar="AUDIO", help="The speech that the lips shall speak.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT.mp4", help="Where the dub goes.")],
    engine: Engine = None,
    device: Device = None,
    report: Annotated[Path | None, typer.Option(help="Also write what was done there, as JSON.")] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Keep to the clock, as a live session does.")
    ] = False,
    idle: Annotated[str, typer.Option(help="What the mouth does in silence: source or rest.")] = "rest",
    template: Annotated[
        str, typer.Option(help="videoretalking's canonical expression: neutral or smile.")
    ] = "neutral",
    consent: Annotated[
        bool,
        typer.Option(
            "--consent", help="The person shown and the owner of the voice have agreed to this dub."
        ),
    ] = False,
) -> None:
    """Dub a file: its lips speak AUDIO, and it keeps frame count, rate, size and rotation."""
    if not consent:
        raise BadUsageError(
            "dub: --consent is missing: a dub puts words into a person's mouth; give --consent where the "
            "person shown and the owner of the voice have agreed"
        )
    if idle not in ("source", "rest"):
        raise BadUsageError(f"dub: --idle is {idle!r}; it must be source or rest")
    if template not in ("neutral", "smile"):
        raise BadUsageError(f"dub: --template is {template!r}; it must be neutral or smile")
    check_writable(report)
    from retalk_models.engine import check_choice

    check_choice(engine or "talkin", device or "auto")
    configure_logging("info")
    from stream.offline import dub as run

    def begun(count: int, total: int | None) -> None:
        # Not earlier: what was refused was not dubbed, and its one line stands alone.
        if count == 1:
            log.info("consent to dub %s with %s was given on the command line by %s", video, audio, user())
        show(count, total)

    with terminate_as_interrupt(), progress("dub", "frames") as show:
        done = run(
            video,
            audio,
            out,
            engine=engine or "talkin",
            device=device or "auto",
            idle=idle,
            template=template,
            realtime=realtime,
            progress=begun,
            report=report,
        )
    print(f"{out}: {done['frames']} frames, {done['dubbed']} dubbed, in {done['wall_seconds']:.1f} s")
    if not done["dubbed"]:
        log.warning("no frame of %s was dubbed: %s", out, why_undubbed(done))
        if done["faults"]:
            raise typer.Exit(ExitCode.FAULT)


def why_undubbed(report: dict[str, Any]) -> str:
    """What most probably kept a dub from every frame, and what to do about it."""
    if report["faults"]:
        return f"the engine failed (faults: {report['faults']}), last with: {report['last_fault']}"
    reasons = {
        "none": "no face was found; show one from the front",
        "small": "the face is too small; give a larger picture of it",
        "profile": "the face is turned away; show it from the front",
        "occluded": "the mouth is covered; show it whole",
        "edge": "the face is cut off by the picture's edge; show it whole",
    }
    faces: dict[str, int] = report["faces"]
    face = max(faces, key=lambda state: faces[state], default="late")
    if face == "late":
        return "no frame was ready in time; leave out --realtime"
    return reasons.get(face, "no speech was heard; give a voice that speaks")


@app.command()
def bench(
    engine: Engine = None,
    device: Device = None,
    sessions: Annotated[int, typer.Option(help="How many at once.", min=1, max=1000)] = 1,
    seconds: Annotated[float, typer.Option(help="How long they run.", min=2, max=86_400)] = 20.0,
    video: Annotated[
        Path | None, typer.Option(help="What is dubbed; the sample presenter where not given.")
    ] = None,
    voice: Annotated[
        Path | None, typer.Option(help="What is said; the sample speech where not given.")
    ] = None,
    size: Annotated[str, typer.Option(help="Width and height of the picture.")] = "640x480",
    target: Annotated[Path | None, typer.Option("--json", help="Also write the figures there.")] = None,
    capacity: Annotated[
        bool, typer.Option("--capacity", help="One session more at a time, until the machine cannot.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="With --capacity: draw it there, as SVG.")] = None,
) -> None:
    """Measure latency, and processor time by stage, of sessions on this machine."""
    if plot is not None and not capacity:
        raise BadUsageError("bench: --plot draws what --capacity measures; give both")
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", size)
    if match is None:
        raise BadUsageError(f"bench: --size is {size!r}; it must be like 640x480")
    check_writable(target)
    check_writable(plot)
    from retalk_models.engine import check_choice

    check_choice(engine or "talkin", device or "auto")
    from server import capacity as climbing
    from server.bench import measure, measure_capacity, save, table

    measured = measure_capacity if capacity else measure
    if capacity and sessions == 1:
        sessions = MOST_SESSIONS
    with progress("bench", "sessions" if capacity else "seconds") as show:
        figures = measured(
            engine or "talkin",
            device or "auto",
            video,
            voice,
            (int(match[1]), int(match[2])),
            sessions,
            seconds,
            show,
        )
    if capacity:
        climbing.table(figures["rows"])
    else:
        table(figures)
    if plot is not None:
        climbing.plot(figures["rows"], f"{figures['engine']} on {figures['device']}, {size}", plot)
    if target is not None:
        save(figures, target)


@app.command("eval")
def evaluate(
    clips: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|MANIFEST",
            help="A folder of clips, or a JSON or CSV list of path, lips_minus_sound_ms and label.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="REPORT_DIR", help="Where the report goes.")],
    engine: Engine = None,
    device: Device = None,
    dubs: Annotated[
        Path | None, typer.Option(help="Measure the dubs in this folder, SOURCE__VOICE.mp4, and dub nothing.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="An earlier report.json, to be shown beside this one.")
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline/--no-baseline", help="Also dub with a loudness-driven mouth.")
    ] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the dubs, unmarked, in the report.")] = False,
    look_ahead_ms: LookAhead = None,
) -> None:
    """Measure lip-sync and picture quality: every clip dubbed with every voice of the manifest."""
    from retalk_models.engine import check_choice

    check_choice(engine or "talkin", device or "auto", look_ahead_ms)
    from stream.evaluate.run import PAGE, Options, summary
    from stream.evaluate.run import evaluate as run

    options = Options(engine or "talkin", device or "auto", dubs, against, baseline, keep, look_ahead_ms)
    with terminate_as_interrupt(), progress("eval", "steps") as show:
        report = run(clips, out, options, show)
    print(summary(report))
    print(out / PAGE)


def check_writable(path: Path | None) -> None:
    """Raises BadUsageError now for a file that could not be written at the end. None is fine."""
    if path is None:
        return
    if path.is_dir():
        raise BadUsageError(f"{path}: it is a folder; name a file in it")
    if not path.parent.is_dir():
        raise BadUsageError(f"{path}: its folder does not exist; create it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadUsageError(f"{path}: it may not be written; choose another place")


def user() -> str:
    """Who runs this, for the log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def read_settings(config: list[Path] | None, **options: str | int | None) -> Settings:
    """The defaults, the named files, the environment, then the options. Raises SettingsError."""
    from server.settings import load_settings

    return load_settings([DEFAULT_CONFIG, *(config or ())], options)


@app.command()
def doctor(
    config: Config = None,
    host: Host = None,
    port: Port = None,
    device: Device = None,
) -> None:
    """Check ports, codecs, device, weights and network, and say what to do about each finding."""
    from server.doctor import Verdict, examine

    settings = read_settings(config, host=host, port=port, device=device)
    styles = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.BROKEN: "bold red"}
    console = Console(highlight=False, soft_wrap=True)
    ice = [server.urls for server in settings.ice_servers]
    broken = 0
    for finding in examine(settings.listen_host, settings.port, settings.device, ice):
        broken += finding.verdict is Verdict.BROKEN
        console.print(f"[{styles[finding.verdict]}]{finding.verdict:<6}[/] {finding.name}: ", end="")
        console.print(finding.detail, markup=False)
        if finding.remedy:
            console.print(f"       -> {finding.remedy}", markup=False)
    if broken:
        console.print(f"{broken} of the above {'are' if broken > 1 else 'is'} broken")
        raise typer.Exit(ExitCode.FAULT)


@models.command("list")
def models_list() -> None:
    """List the weights that are shipped and the model files that can be had, with their hashes."""
    from server.models import listing

    for line in listing():
        print(line)


@models.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="videoretalking, gfpgan, or one file's name.")],
    agree: Annotated[bool, typer.Option("--agree", help="The terms of the files are agreed to.")] = False,
) -> None:
    """Download model files, showing the terms of each first; continues where it was interrupted."""
    from server.models import pull

    raise typer.Exit(pull(name, agree))


@models.command("path")
def models_path(
    name: Annotated[
        str | None,
        typer.Argument(
            help="As `retalk models list` names it, or a group; the shipped weights' folder if none."
        ),
    ] = None,
) -> None:
    """Print the folder of the shipped weights, or where a weight or model file is."""
    from server.models import places

    for place in places(name):
        print(place)


@models.command("verify")
def models_verify(
    name: Annotated[str, typer.Argument(help="As `retalk models list` names it, or a group.")],
) -> None:
    """Compare a weight file's hash with the one shipped, or recorded when it was first used."""
    from server.models import verify

    raise typer.Exit(verify(name))


OWN_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Training parses its own options, so that it also runs where no server is installed."""


@train.command("expression", context_settings=OWN_OPTIONS)
def train_expression(context: typer.Context) -> None:
    """Train the net that turns speech into lip and jaw movement (options: --help)."""
    from retalk_models.talkin.train_expression import main as run

    sys.argv = ["retalk train expression", *context.args]
    run()


@train.command("renderer", context_settings=OWN_OPTIONS)
def train_renderer(context: typer.Context) -> None:
    """Train the rendering net, or fine-tune it on a presenter's own clip (options: --help)."""
    from retalk_models.talkin.train_renderer import main as run

    sys.argv = ["retalk train renderer", *context.args]
    run()


@train.command("basis", context_settings=OWN_OPTIONS)
def train_basis(context: typer.Context) -> None:
    """Learn the linear lip and jaw basis that expressions are coefficients of (options: --help)."""
    from retalk_models.talkin.train_basis import main as run

    sys.argv = ["retalk train basis", *context.args]
    run()


def bad_input(error: Exception) -> bool:
    """Whether an error is the user's to mend. Looks only at what is loaded: a check must not import torch."""
    kinds = (
        ("server.settings", "SettingsError"),
        ("stream.errors", "InputError"),
        ("retalk_models.engine", "UnknownEngineError"),
        ("retalk_models.engine", "DeviceError"),
        ("retalk_models.engine", "LookAheadError"),
        ("retalk_models.store", "CheckpointError"),
        ("retalk_models.tensors", "TensorFileError"),
        ("retalk_models.hearing", "SpeechEncoderError"),
        ("retalk_models.restore", "RestorationError"),
    )
    return any(
        (module := sys.modules.get(home)) is not None and isinstance(error, getattr(module, kind))
        for home, kind in kinds
    )


def main() -> None:
    """The console script."""
    # Read when torch and MediaPipe load, which nothing has done yet. A spinning OpenMP pool takes both cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Every product here is too small to share out; waking numpy's second thread costs more than it brings.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    silence_native_code()
    sys.exit(guard("retalk", lambda: app(standalone_mode=False), bad_input))


if __name__ == "__main__":
    main()
