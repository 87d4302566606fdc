"""Reading the tensors of a model in ONNX Runtime's own format (.ort), without ONNX Runtime.

The file is a FlatBuffer of the schema onnxruntime/core/flatbuffers/schema/ort.fbs: a session's second field
is the model, whose eighth is the graph, whose first are the tensors and whose third the nodes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]

_TYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2"}
_MODEL, _GRAPH, _TENSORS, _NODES = 1, 7, 0, 2
_NAME, _SHAPE, _TYPE, _VALUES, _INPUTS = 0, 2, 3, 4, 8


class OrtFileError(ValueError):
    """Not a model in this format; the message says what was found instead."""


@dataclass(frozen=True, slots=True)
class _Table:
    """A FlatBuffers table: fields by number, found through its list of offsets."""

    data: bytes
    place: int

    def _field(self, number: int) -> int:
        """Where a field lies; 0 where the table has none."""
        offsets = self.place - self._number("<i", self.place)
        entry = 4 + 2 * number
        if entry >= self._number("<H", offsets):
            return 0
        offset = self._number("<H", offsets + entry)
        return self.place + offset if offset else 0

    def _number(self, kind: str, place: int) -> int:
        (value,) = struct.unpack_from(kind, self.data, place)
        return int(value)

    def _target(self, place: int) -> int:
        return place + self._number("<I", place)

    def number(self, field: int) -> int:
        place = self._field(field)
        return self._number("<i", place) if place else 0

    def table(self, field: int) -> _Table:
        place = self._field(field)
        if not place:
            raise OrtFileError(f"a table lacks field {field}")
        return _Table(self.data, self._target(place))

    def _vector(self, field: int) -> tuple[int, int]:
        """How many entries there are and where they begin."""
        place = self._field(field)
        if not place:
            return 0, 0
        start = self._target(place)
        return self._number("<I", start), start + 4

    def tables(self, field: int) -> list[_Table]:
        count, start = self._vector(field)
        return [_Table(self.data, self._target(start + 4 * index)) for index in range(count)]

    def values(self, field: int, kind: str) -> Array:
        """(n,) a vector of numbers of this kind."""
        count, start = self._vector(field)
        return np.frombuffer(self.data, kind, count, start)

    def tensor(self) -> Array:
        kind = np.dtype(_TYPES[self.number(_TYPE)])
        size, start = self._vector(_VALUES)
        values = np.frombuffer(self.data, kind, size // kind.itemsize, start)
        return values.reshape(self.values(_SHAPE, "<i8").astype(int))

    def text(self, field: int) -> str:
        count, start = self._vector(field)
        return self.data[start : start + count].decode("utf-8")

    def texts(self, field: int) -> list[str]:
        count, start = self._vector(field)
        places = [self._target(start + 4 * index) for index in range(count)]
        return [self.data[at + 4 : at + 4 + self._number("<I", at)].decode("utf-8") for at in places]


@dataclass(frozen=True, slots=True, eq=False)
class OrtFile:
    """tensors: constants by name. inputs: the names that each node reads, by the node's name."""

    tensors: dict[str, Array]
    inputs: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> OrtFile:
        """Raises OrtFileError, naming the file, for one of another format, OSError for none at all."""
        data = path.read_bytes()
        if data[4:8] != b"ORTM":
            raise OrtFileError(f"{path.name}: not a model in ONNX Runtime's format")
        try:
            (root,) = struct.unpack_from("<I", data, 0)
            graph = _Table(data, root).table(_MODEL).table(_GRAPH)
            tensors = {one.text(_NAME): one.tensor() for one in graph.tables(_TENSORS)}
            nodes = {one.text(_NAME): one.texts(_INPUTS) for one in graph.tables(_NODES)}
        except (struct.error, ValueError, KeyError, IndexError) as error:
            raise OrtFileError(f"{path.name}: a damaged model ({error})") from None
        return cls(tensors, nodes)
