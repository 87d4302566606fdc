"""The options of the training commands, which also run where no server is installed."""

from __future__ import annotations

import argparse
from typing import NoReturn

BAD_INPUT = 2
"""Exit status of what the user can mend."""


class TrainingParser(argparse.ArgumentParser):
    """Says what is wrong in one line on stderr, where argparse puts the usage before it."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawTextHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Exit for an option that is wrong or missing."""
        self.refuse(f"{message} (see: {self.prog} --help)")

    def refuse(self, reason: object) -> NoReturn:
        """Exit for an input that cannot be used. reason: what is wrong, and what would be right."""
        self.exit(BAD_INPUT, f"{self.prog}: {' '.join(str(reason).split())}\n")
