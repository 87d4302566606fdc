"""What every room's tests share."""

from __future__ import annotations

import ctypes.util
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

# Before torch loads: spinning OpenMP threads starve everything else on a machine of two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GLOG_minloglevel", "2")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if find_spec("gfpgan") is None:
    # They have an environment of their own: make test-gfpgan.
    collect_ignore = ["gfpgan"]

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real faces and voices, clips/{open,hard,train,speech}: beside the repository, not in it.

    RETALK_CLIPS names another place. Footage of real people cannot be shipped, so a checkout without the
    folder skips, and says so.
    """
    folder = Path(os.environ.get("RETALK_CLIPS", REPOSITORY.parent / "shared" / "clips"))
    if not folder.is_dir():
        pytest.skip(f"REAL CLIPS ABSENT: no folder {folder}; set RETALK_CLIPS to one with open/ and speech/")
    return folder


@pytest.fixture(scope="session")
def espeak_ng() -> None:
    """Needs espeak-ng, which `make test` installs where it may; skips loudly where it could not."""
    if ctypes.util.find_library("espeak-ng") is None:
        pytest.skip("ESPEAK-NG ABSENT: apt-get install espeak-ng; only training needs it")
