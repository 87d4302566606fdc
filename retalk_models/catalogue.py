"""Every model file that can be had from elsewhere, in the groups that are pulled together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from retalk_models.restore import GFPGAN_FILE
from retalk_models.store import CheckpointError, CheckpointFile
from retalk_models.videoretalking.files import FILES

MIRROR = "RETALK_MODELS_MIRROR"
"""Environment variable: an address under which all files lie by name, instead of their releases."""


class UnknownModelError(CheckpointError):
    """No group and no file has that name; the message lists those that exist."""


def catalogue(environment: Mapping[str, str] = os.environ) -> dict[str, tuple[CheckpointFile, ...]]:
    """Files by group."""
    groups = {"videoretalking": FILES, "gfpgan": (GFPGAN_FILE,)}
    mirror = environment.get(MIRROR)
    if not mirror:
        return groups
    return {
        group: tuple(replace(file, address=f"{mirror.rstrip('/')}/{file.name}") for file in files)
        for group, files in groups.items()
    }


def choose(name: str, environment: Mapping[str, str] = os.environ) -> tuple[CheckpointFile, ...]:
    """The files of a group, or the one of that name. Raises UnknownModelError."""
    groups = catalogue(environment)
    if name in groups:
        return groups[name]
    every = [file for files in groups.values() for file in files]
    for file in every:
        if file.name == name:
            return (file,)
    raise UnknownModelError(
        f"unknown model {name!r}; there are: {', '.join([*groups, *(file.name for file in every)])}"
    )
