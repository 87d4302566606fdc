"""The commands.

Everything heavy is imported inside the command that needs it, so that `retalk --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from server.console import ExitCode, guard

app = typer.Typer(
    name="retalk",
    help="Near-real-time dubbing: a face and a separate voice in, one synchronised stream out.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models = typer.Typer(help="The weights that are here.", rich_markup_mode=None)
app.add_typer(models, name="models")

Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda[:N].")]


@app.command()
def doctor(
    host: Annotated[str, typer.Option(help="Address that would be listened on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port that would be listened on.", min=1, max=65535)] = 8080,
    device: Device = "auto",
) -> None:
    """Check ports, codecs, device, weights and network, and say what to do about each finding."""
    from server.doctor import Verdict, examine

    styles = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.BROKEN: "bold red"}
    console = Console(highlight=False, soft_wrap=True)
    broken = 0
    for finding in examine(host, port, device):
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
    """List the weights that are here, with their hashes."""
    from retalk_models.checkpoints import bundled

    for weights in bundled():
        size = weights.path.stat().st_size if weights.actual else 0
        print(f"{weights.name}  {size} bytes  {weights.actual or '-'}  {weights.fault or 'as shipped'}")


@models.command("path")
def models_path() -> None:
    """Print the folder of the weights."""
    from retalk_models.checkpoints import WEIGHTS

    print(WEIGHTS)


@models.command("verify")
def models_verify(name: Annotated[str, typer.Argument(help="As `retalk models list` names it.")]) -> None:
    """Compare a weight file's hash with the one that was shipped."""
    from retalk_models.checkpoints import find

    weights = find(name)
    if weights.fault:
        print(f"{weights.path} {weights.fault}; restore it from the release", file=sys.stderr)
        raise typer.Exit(ExitCode.FAULT)
    print(f"{weights.path.name}: as shipped, SHA-256 {weights.actual}")


def bad_input(error: Exception) -> bool:
    """Whether an error is the user's to mend. Looks only at what is loaded: a check must not import torch."""
    kinds = (
        ("retalk_models.engine", "UnknownEngineError"),
        ("retalk_models.checkpoints", "UnknownWeightsError"),
    )
    return any(
        (module := sys.modules.get(home)) is not None and isinstance(error, getattr(module, kind))
        for home, kind in kinds
    )


def main() -> None:
    """The console script."""
    # Read when torch and MediaPipe load, which nothing has done yet. A spinning OpenMP pool takes both cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(guard("retalk", lambda: app(standalone_mode=False), bad_input))


if __name__ == "__main__":
    main()
