"""What a server and all processes that it started use together."""

from __future__ import annotations

from collections.abc import Callable

import psutil


def _sum(process: psutil.Process, figure: Callable[[psutil.Process], float]) -> float:
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += figure(each)
        except psutil.NoSuchProcess:
            continue
    return total


def cpu_s(process: psutil.Process) -> float:
    """Processor seconds so far."""
    return _sum(process, lambda each: float(sum(each.cpu_times()[:2])))


def memory_mb(process: psutil.Process) -> float:
    """Resident memory that is not shared, in millions of bytes."""
    return _sum(process, own_memory_mb)


def own_memory_mb(process: psutil.Process) -> float:
    """The same of one process, without those that it started."""
    return float(process.memory_full_info().uss) / 1e6


def threads(process: psutil.Process) -> float:
    return _sum(process, lambda each: float(each.num_threads()))


def descriptors(process: psutil.Process) -> float:
    return _sum(process, lambda each: float(each.num_fds()))
