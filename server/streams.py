"""Loads the engine once and makes the streams of all sessions on it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from retalk_models.engine import ClosingEngine, Engine, LanedEngine, adapted
from retalk_models.picture import Picture
from server.bench import SAMPLE_SPEECH
from server.hosted import SessionPlan
from server.settings import Settings
from stream.admission import Admission, Demand, measure_demand
from stream.batch_cost import measure_calls
from stream.clock import MonotonicClock
from stream.errors import InputError
from stream.files import FilmOf, VideoFile
from stream.material import Material, load_material
from stream.media import PLAYOUT_RATE
from stream.process_engine import ProcessEngine, ask, load_to_serve
from stream.runner import processor_s
from stream.sample import sample_presenter
from stream.scheduler import Scheduler, threads_for
from stream.session import Session, SessionConfig

T = TypeVar("T")

logger = logging.getLogger(__name__)

_START_SIZE = (640, 480)
_START_S = 2.0


class Streams:
    """The engine of this server, the threads that it runs in, and what fits. Close it after the last session.

    demand: what a session was measured to take; None where nobody measured, and all is admitted.
    calls: seconds that a call of n windows was measured to take, by n, see `measure_calls`.
    """

    def __init__(
        self, engine: Engine, demand: Demand | None = None, calls: Mapping[int, float] | None = None
    ) -> None:
        self.engine = engine
        threads = threads_for(engine)
        self._runner = Scheduler(engine.name, workers=threads)
        for count, seconds in (calls or {}).items():
            self._runner.costs.note(count, seconds)
        self._files = ThreadPoolExecutor(1, "presenter-check")
        self._checked: dict[Path, tuple[int, int, bool]] = {}
        self.demand = demand
        self.admission = Admission(
            demand or Demand(0.0, 0.0),
            devices=threads,
            apart=isinstance(engine, LanedEngine),
            device_loads=self._runner.load,
            cpu_s=partial(processor_s, engine),
        )

    async def open(self, plan: SessionPlan) -> Session:
        """A stream that has not begun to run. Raises stream.errors.InputError for a bad presenter."""
        if plan.presenter is not None:
            # Found out now, while there is still somebody to tell.
            await self._in_files_thread(_check_presenter, plan.presenter)
        config = SessionConfig(
            policy=plan.policy,
            latency_budget_us=plan.latency_budget_ms * 1000,
            idle=plan.idle,
            mark=plan.mark,
            person=adapted(plan.presenter),
            film=None if plan.presenter is None else FilmOf.file(plan.presenter, bt601=True),
        )
        return Session(config, self.engine, clock=MonotonicClock(), runner=self._runner)

    @property
    def calls(self) -> Mapping[int, float]:
        """Seconds that a call of n windows takes, by n, as far as known."""
        return self._runner.costs.table()

    async def is_usable(self, presenter: Path) -> bool:
        """Whether a presenter's file can be shown; looked at anew only where it has changed."""
        return await self._in_files_thread(self._is_usable, presenter)

    def _is_usable(self, presenter: Path) -> bool:
        try:
            state = presenter.stat()
        except OSError:
            return False
        stamp = state.st_mtime_ns, state.st_size
        known = self._checked.get(presenter)
        if known is None or known[:2] != stamp:
            usable = True
            try:
                _check_presenter(presenter)
            except InputError as error:
                logger.warning("a presenter is left out of the list: %s", error)
                usable = False
            known = self._checked[presenter] = (*stamp, usable)
        return known[2]

    async def poster(self, presenter: Path) -> bytes:
        """A presenter's first picture as JPEG. Raises stream.errors.InputError where there is none."""
        return await self._in_files_thread(_first_picture, presenter)

    async def _in_files_thread(self, work: Callable[[Path], T], path: Path) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, work, path)

    async def close(self) -> None:
        """Stop the engine's threads."""
        self._files.shutdown(wait=False, cancel_futures=True)
        await self._runner.shutdown()
        if isinstance(self.engine, ClosingEngine):
            self.engine.close()


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

    Raises what load_engine raises: UnknownEngineError, ValueError for a device or a look-ahead that there
    is not.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        # It counts only if set before torch loads, which the command line does; too late to mend here.
        logger.warning("OMP_WAIT_POLICY is not set; set it to PASSIVE, or idle threads will spin")
    with ThreadPoolExecutor(1, "engine-load") as executor:
        loop = asyncio.get_running_loop()
        engine = await loop.run_in_executor(
            executor,
            load_to_serve,
            settings.engine,
            settings.device,
            settings.engine_processes,
            settings.look_ahead_ms,
        )
        try:
            demand, calls = await loop.run_in_executor(executor, _measured, engine)
            if isinstance(engine, ProcessEngine):
                await loop.run_in_executor(executor, partial(engine.prepare, wait=True))
        except BaseException:
            # Its processes would stay for as long as this server says that it has no engine.
            if isinstance(engine, ClosingEngine):
                engine.close()
            raise
    # What loading made stays for good: looking through it for garbage would hold up frames.
    gc.collect()
    gc.freeze()
    logger.info("a session takes %.2f of the device and %.2f cores", demand.device, demand.cores)
    return Streams(engine, demand, calls)


def _measured(engine: Engine) -> tuple[Demand, dict[int, float]]:
    """What one session and what calls of several windows take; the engine is warm after it."""
    try:
        material = load_material(sample_presenter(), SAMPLE_SPEECH, *_START_SIZE, _START_S)
    except InputError as error:
        logger.warning("without a face the engine's cost cannot be measured at start: %s", error)
        grey = Picture.from_rgb(np.full((_START_SIZE[1], _START_SIZE[0], 3), 128, np.uint8))
        material = Material([grey], 25.0, np.zeros(PLAYOUT_RATE, np.int16))
    return (
        ask(engine, partial(measure_demand, material=material)),
        ask(engine, partial(measure_calls, material=material)),
    )
