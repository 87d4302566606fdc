"""What can be refused, as one error type that every edge turns into its own shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ApiError(Exception):
    """A refusal that a user can act on.

    status: the HTTP status that fits. code: stable, machine-readable. message: what is wrong. hint: what
    would be right. headers: extra HTTP headers, for instance Retry-After.
    """

    status: int
    code: str
    message: str
    hint: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def body(self) -> dict[str, Any]:
        """The JSON that HTTP answers and both sockets carry under "error"."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


def bad_request(code: str, message: str, hint: str = "") -> ApiError:
    """Something that is wrong in itself, whatever state the server is in."""
    return ApiError(400, code, message, hint)


def unauthorised(message: str, hint: str) -> ApiError:
    """No token, or a wrong one (RFC 6750 section 3)."""
    return ApiError(401, "unauthorised", message, hint, {"WWW-Authenticate": 'Bearer realm="retalk"'})


def forbidden(code: str, message: str, hint: str = "") -> ApiError:
    """Understood, and not allowed here."""
    return ApiError(403, code, message, hint)


def unknown_session() -> ApiError:
    """The same answer for an id that never was and one that has ended: neither tells a guesser anything."""
    return ApiError(
        404,
        "unknown_session",
        "there is no such session; it may have ended",
        "create one with POST /v1/sessions",
    )


def invalid(code: str, message: str, hint: str = "") -> ApiError:
    """Well-formed, but not something that can be done."""
    return ApiError(422, code, message, hint)


def unavailable(code: str, message: str, hint: str, retry_after_s: int) -> ApiError:
    """Not now."""
    return ApiError(503, code, message, hint, {"Retry-After": str(retry_after_s)})


def first_problem(errors: list[Any]) -> str:
    """Pydantic's list of problems as one line that names the field first reported.

    Of a value that fits no member of a union, what keeps it from the member that it comes nearest to.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for problem in errors:
        what = str(problem.get("msg") or "is not valid")
        found.setdefault(_path(problem), []).append(what[0].lower() + what[1:])
    field = next(iter(found))[:1]
    # Every member of a union is reported; the value reaches furthest into the one that was meant.
    where = max((path for path in found if path[:1] == field), key=len)
    others = sum(path != where[: len(path)] for path in found)
    more = f" (and {others} more)" if others else ""
    return f"{'.'.join(where) or 'body'}: {' or '.join(found[where])}{more}"


_UNION_MEMBER = re.compile(r"[A-Z]\w*|\w+\[.*\]")
"""How pydantic names a union's member in the middle of a path: by its class, or like literal['webrtc']."""


def _path(problem: Any) -> tuple[str, ...]:
    """Where a problem is, in keys of what was sent."""
    parts = tuple(str(part) for part in problem.get("loc", ()))
    # A key that nobody asked for may look like anything.
    sent = parts[-1:] if problem.get("type") == "extra_forbidden" else ()
    ours = parts[: len(parts) - len(sent)]
    return (*(part for part in ours if not _UNION_MEMBER.fullmatch(part)), *sent)
