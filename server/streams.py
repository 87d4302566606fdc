"""Loads the engine once and makes the streams of all sessions on it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2

from retalk_models.engine import Engine, load_engine
from server.hosted import SessionPlan
from server.settings import Settings
from stream.clock import MonotonicClock
from stream.errors import InputError
from stream.files import VideoFile
from stream.scheduler import Scheduler
from stream.session import Session, SessionConfig

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Streams:
    """The engine of this server and the one thread that it runs in. Close it after the last session."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._runner = Scheduler(engine.name)
        self._files = ThreadPoolExecutor(1, "presenter-check")

    async def open(self, plan: SessionPlan) -> Session:
        """A stream that has not begun to run. Raises stream.errors.InputError for a bad presenter."""
        if plan.presenter is not None:
            # Found out now, while there is still somebody to tell.
            await self._in_files_thread(_check_presenter, plan.presenter)
        config = SessionConfig(
            latency_budget_us=plan.latency_budget_ms * 1000,
            idle=plan.idle,
            mark=plan.mark,
        )
        return Session(config, self.engine, clock=MonotonicClock(), runner=self._runner)

    async def poster(self, presenter: Path) -> bytes:
        """A presenter's first picture as JPEG. Raises stream.errors.InputError where there is none."""
        return await self._in_files_thread(_first_picture, presenter)

    async def _in_files_thread(self, work: Callable[[Path], T], path: Path) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, work, path)

    async def close(self) -> None:
        """Stop the engine's thread."""
        self._files.shutdown(wait=False, cancel_futures=True)
        await self._runner.shutdown()


def _first_picture(path: Path) -> bytes:
    with VideoFile(path, bt601=True) as file:
        frame = next(file.ping_pong())
    bgr = cv2.cvtColor(frame.picture.rgb(), cv2.COLOR_RGB2BGR)
    done, jpeg = cv2.imencode(".jpg", bgr)
    if not done:
        raise InputError(path.name, "has no picture that can be shown", "give another file")
    return jpeg.tobytes()


def _check_presenter(path: Path) -> None:
    with VideoFile(path):
        return


async def load(settings: Settings) -> Streams:
    """Load the settings' engine without holding up the event loop.

    Raises what load_engine raises: UnknownEngineError, ValueError for a device that is not there.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        # It counts only if set before torch loads, which the command line does; too late to mend here.
        logger.warning("OMP_WAIT_POLICY is not set; set it to PASSIVE, or idle threads will spin")
    with ThreadPoolExecutor(1, "engine-load") as executor:
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(executor, load_engine, settings.engine, settings.device)
    return Streams(engine)
