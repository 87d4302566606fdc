"""The line between the server and a process that an engine runs in: messages, and memory that both see.

Every message is a pickle of our own making between two processes of one program; nothing that came over a
network decides what is unpickled. Arrays do not go through the socket: the one that sends lays them into the
shared memory, the one that receives copies them out before it answers. Calls come one at a time, so neither
ever writes over what the other has not read.
"""

from __future__ import annotations

import mmap
import os
import pickle
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

_SHARED_BYTES = 64 << 20
"""Address space; memory only as far as it was ever written to. What does not fit goes through the socket."""


def shared_memory() -> BinaryIO:
    """New memory for both ends of a line, as a file of no folder; it may be closed once both have it."""
    file = os.fdopen(os.memfd_create("retalk-engine"), "r+b", buffering=0)
    os.ftruncate(file.fileno(), _SHARED_BYTES)
    return file


class EngineLine:
    """One end, which the connection then belongs to. Used by one thread at a time."""

    def __init__(self, connection: Connection, descriptor: int) -> None:
        self._connection = connection
        self._mapped = mmap.mmap(descriptor, _SHARED_BYTES)
        self._shared = memoryview(self._mapped)

    def send(self, message: object) -> None:
        """Write one message. Raises OSError where nobody is there any more."""
        laid: list[int] = []
        end = 0

        def lay(buffer: pickle.PickleBuffer) -> bool:
            nonlocal end
            with buffer.raw() as raw:
                if end + raw.nbytes > _SHARED_BYTES:
                    return True
                self._shared[end : end + raw.nbytes] = raw
                laid.append(raw.nbytes)
                end += raw.nbytes
                return False

        data = pickle.dumps(message, protocol=5, buffer_callback=lay)
        self._connection.send_bytes(pickle.dumps((laid, data)))

    def receive(self) -> Any:
        """Wait for one message. Raises EOFError or OSError where nobody is there any more."""
        laid, data = pickle.loads(self._connection.recv_bytes())
        buffers, start = [], 0
        for size in laid:
            buffers.append(bytearray(self._shared[start : start + size]))
            start += size
        return pickle.loads(data, buffers=buffers)

    def poll(self, seconds: float) -> bool:
        """Whether a message comes, or the other end goes, within so long."""
        return self._connection.poll(seconds)

    def close(self) -> None:
        """Leave the line. Idempotent."""
        self._connection.close()
        self._shared.release()
        self._mapped.close()
