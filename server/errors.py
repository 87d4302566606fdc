"""What can be refused, as one error type that every edge turns into its own shape."""

from __future__ import annotations

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
    """Pydantic's list of problems as one line that names the field first reported."""
    problem = errors[0]
    where = ".".join(str(part) for part in problem.get("loc", ())) or "body"
    what = str(problem.get("msg", "is not valid"))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {what[0].lower()}{what[1:]}{more}"
