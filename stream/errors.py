"""What may be wrong with what the stream is given, in words for whoever gave it."""

from __future__ import annotations


class InputError(ValueError):
    """An input cannot be used. The message is one line: which input, what is wrong, what would be right."""

    def __init__(self, what: object, wrong: str, right: str) -> None:
        super().__init__(f"{what}: {wrong}; {right}")
        self.what = str(what)
        self.wrong = wrong
        self.right = right


class VoiceFull(ValueError):
    """More speech than the voice's buffer takes was pushed; nothing of it was accepted. See `credit_ms`."""
