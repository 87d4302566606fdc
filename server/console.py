"""How the commands speak: one line for what went wrong, an exit code, and progress."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger("retalk")

PLAIN_INTERVAL_S = 5.0
"""Between two lines of progress where there is no terminal to draw a bar on."""


class ExitCode(IntEnum):
    """What a command's exit status means; a promise to scripts."""

    DONE = 0
    FAULT = 1
    BAD_INPUT = 2
    INTERRUPTED = 130


class BadUsageError(ValueError):
    """The command was used wrongly; the message says what, why and what would be right, in one line."""


def guard(name: str, command: Callable[[], int | None], bad_input: Callable[[Exception], bool]) -> int:
    """Run a command and turn whatever it raises into an exit code and one line on stderr.

    An error that is a list says so by its attribute `lines_matter`, and keeps its lines.

    bad_input: tells the errors that the user can mend from faults of ours. RETALK_DEBUG=1 shows tracebacks.
    """
    if os.environ.get("RETALK_DEBUG"):
        return command() or ExitCode.DONE
    try:
        code = command() or ExitCode.DONE
        if code != ExitCode.INTERRUPTED:
            return code
        # Typer turns an interrupt into this code without a word.
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        _say(f"{name}: interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left, as `| head` does; a second flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAULT
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is not None:
            _say(f"{name}: {usage()} (see: {name} --help)")
            return ExitCode.BAD_INPUT
        if isinstance(error, BadUsageError) or bad_input(error):
            if getattr(error, "lines_matter", False):
                print(f"{name}: {error}", file=sys.stderr)
            else:
                _say(f"{name}: {error}")
            return ExitCode.BAD_INPUT
        _say(
            f"{name}: a fault of ours: {type(error).__name__}: {error} "
            "(RETALK_DEBUG=1 shows where; please report it)"
        )
        return ExitCode.FAULT


def _say(text: str) -> None:
    print(" ".join(text.split()), file=sys.stderr)


def silence_native_code() -> None:
    """Send what native code writes to stderr nowhere, and keep Python's own stderr where it is.

    MediaPipe writes four lines for every tracker that it makes, whatever its log level says, which would bury
    the one line that a command has to say. A crash still leaves Python's traceback. RETALK_DEBUG=1 keeps all.
    """
    if os.environ.get("RETALK_DEBUG"):
        return
    sys.stderr.flush()
    ours = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    sys.stderr = os.fdopen(ours, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    faulthandler.enable(sys.stderr)


def configure_logging(level: str) -> None:
    """Log to stderr, with colours on a terminal. level: debug, info, warning or error."""
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
        form = "%(message)s"
    else:
        handler = logging.StreamHandler()
        form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=level.upper(), format=form, handlers=[handler])
    for chatty in ("aioice", "aiortc", "libav", "matplotlib", "numba"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that partial output is removed then too."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        # Not raised here: asyncio answers SIGINT by cancelling its main task, which unwinds in good order.
        signal.raise_signal(signal.SIGINT)

    # A shell without job control starts background commands with SIGINT ignored, and asyncio then keeps out.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress(label: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield report(done, total): a bar on a terminal, else a plain line every few seconds, both on stderr.

    total: None where it is not known.
    """
    if sys.stderr.isatty():
        columns = (
            TextColumn(label),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return

    said = time.monotonic()

    def report(done: int, total: int | None) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said < PLAIN_INTERVAL_S:
            return
        said = now
        of = f" of {total}" if total else ""
        print(f"{label}: {done}{of} {unit}", file=sys.stderr, flush=True)

    yield report
