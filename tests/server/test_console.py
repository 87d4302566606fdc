from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
import typer

from server.console import BadUsageError, ExitCode, guard, progress, terminate_as_interrupt


def never(error: Exception) -> bool:
    return False


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BadUsageError("a.mp4: no such file"), ExitCode.BAD_INPUT, "retalk: a.mp4: no such file"),
        (BadUsageError("two\nlines  here"), ExitCode.BAD_INPUT, "retalk: two lines here"),
        (typer.BadParameter("too big"), ExitCode.BAD_INPUT, "too big (see: retalk --help)"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "retalk: interrupted"),
        (RuntimeError("boom"), ExitCode.FAULT, "a fault of ours: RuntimeError: boom"),
    ],
)
def test_each_error_becomes_its_code_and_one_line(
    error: BaseException, code: ExitCode, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard("retalk", raising(error), never) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert line in err


def test_the_caller_says_which_errors_are_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    error = LookupError("unknown engine 'x'")
    assert guard("retalk", raising(error), lambda e: isinstance(e, LookupError)) == ExitCode.BAD_INPUT
    assert capsys.readouterr().err == "retalk: unknown engine 'x'\n"


def test_a_command_that_returns_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard("retalk", lambda: None, never) == ExitCode.DONE
    assert guard("retalk", lambda: 1, never) == ExitCode.FAULT
    assert capsys.readouterr().err == ""
    assert guard("retalk", lambda: 130, never) == ExitCode.INTERRUPTED
    assert capsys.readouterr().err == "retalk: interrupted\n"


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETALK_DEBUG", "1")
    with pytest.raises(RuntimeError, match="boom"):
        guard("retalk", raising(RuntimeError("boom")), never)


def test_a_termination_unwinds_like_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminate_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_progress_without_a_terminal_is_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ticks = iter([0.0, 1.0, 5.0, 6.0, 10.0])
    monkeypatch.setattr("server.console.time.monotonic", lambda: next(ticks))
    with progress("dub", "frames") as report:
        for done in (10, 100, 120):
            report(done, 200)
        report(300, None)
    assert capsys.readouterr().err.splitlines() == [
        "dub: 100 of 200 frames",
        "dub: 300 frames",
    ]
