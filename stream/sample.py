"""The sample presenter: a public-domain portrait that scikit-image installs, so that a demo needs no file."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from stream.errors import InputError

NAME = "sample"
"""How sessions name the sample presenter as their source."""


def sample_presenter() -> Path:
    """The portrait's file (NASA's of Eileen Collins, 512x512). Raises InputError where it is absent."""
    if find_spec("skimage") is not None:
        portrait = Path(str(files("skimage.data").joinpath("astronaut.png")))
        if portrait.is_file():
            return portrait
    raise InputError(
        "the sample presenter", "scikit-image is not installed", "install it: pip install 'retalk[demo]'"
    )
