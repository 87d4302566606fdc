"""Who may do what: the server key, session tokens, and where a browser's request comes from."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from server.errors import forbidden, unauthorised

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def new_secret() -> str:
    """128 random bits, safe in a URL."""
    return secrets.token_urlsafe(16)


def is_loopback(host: str) -> bool:
    """Whether an address or a name stands for this machine only."""
    if host in LOOPBACK_NAMES or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bearer(headers: Headers) -> str | None:
    """The token of an Authorization header (RFC 6750 section 2.1)."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def same(given: str | None, expected: str) -> bool:
    """Compare secrets in constant time."""
    return given is not None and hmac.compare_digest(given.encode(), expected.encode())


def require(given: str | None, expected: str, what: str) -> None:
    """Raise 401 unless the token is the expected one; `what` names it in the message."""
    if given is None:
        raise unauthorised(f"this needs {what}", f"send Authorization: Bearer followed by {what}")
    if not same(given, expected):
        raise unauthorised(f"this is not {what}", f"send Authorization: Bearer followed by {what}")


def check_host(headers: Headers, loopback_only: bool) -> None:
    """Refuse a name that is not this machine's on a server that serves this machine only.

    Without it, a page of any site could rebind its own name to 127.0.0.1 and use an open local server.
    """
    try:
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:  # no address at all, as "[::1"
        host = ""
    if loopback_only and not is_loopback(host):
        raise forbidden(
            "host_refused",
            "this server has no key and serves this machine only",
            "open it as http://localhost, or configure server_key to serve others",
        )


def check_origin(headers: Headers, allowed: Sequence[str]) -> None:
    """Refuse a browser's request from another site's page; programs send no Origin and pass.

    allowed: further origins, for instance https://app.example.
    """
    origin = headers.get("origin")
    if origin is None or origin in allowed:
        return
    try:
        place = urlsplit(origin).netloc.lower()
    except ValueError:
        place = ""
    if place and place == headers.get("host", "").lower():
        return
    raise forbidden(
        "origin_refused",
        "pages of this origin may not use this server",
        "serve the page from this server, or add its origin to allowed_origins",
    )
