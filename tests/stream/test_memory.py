from __future__ import annotations

import ctypes
import threading

import psutil
import pytest

from stream.memory import return_memory


def resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 1e6


def test_what_another_thread_freed_goes_back_to_the_system() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        assert not return_memory()
        return

    def fill_and_free() -> None:
        # Small pieces, which no allocator maps one by one, with a last one that keeps the arena's end in use.
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        pieces = [libc.malloc(60_000) for _ in range(1500)]
        for piece in pieces:
            ctypes.memset(piece, 1, 60_000)
        for piece in pieces[:-1]:
            libc.free(ctypes.c_void_p(piece))

    thread = threading.Thread(target=fill_and_free)
    thread.start()
    thread.join()
    before = resident_mb()
    assert return_memory()
    assert resident_mb() < before - 50


def test_a_libc_without_it_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not return_memory()
