"""One large file by HTTP: resumed where it broke off, complete or not there at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT_S = 30.0
SPARE_BYTES = 64 << 20
"""Disk space that a download leaves free."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes that there will be, if the server says."""


class DownloadError(RuntimeError):
    """A download failed for good. The message is one line: which file, what happened, what to do."""


class _Interrupted(Exception):
    """Worth another attempt from where it stopped."""


class _Stale(Exception):
    """What is here of the file is no beginning of what the server has."""


@dataclass(frozen=True, slots=True)
class Digest:
    """Size in bytes and SHA-256, in hexadecimal, of a whole file."""

    size: int
    sha256: str


def digest(path: Path) -> Digest:
    with path.open("rb") as file:
        return Digest(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        old, new = (urllib.parse.urlsplit(url).scheme for url in (req.full_url, newurl))
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise DownloadError(f"{req.full_url} redirects to {newurl}, which is not safe to follow")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The part of a file that is here, and how to ask whether the server still has the same one."""

    size: int
    validator: str
    total: int | None


def _read_beginning(part: Path, note: Path, address: str) -> _Beginning | None:
    try:
        held = json.loads(note.read_text(encoding="utf-8"))
        size = part.stat().st_size
        if held["address"] == address and size > 0 and isinstance(held["validator"], str):
            total = held["total"]
            return _Beginning(size, held["validator"], total if isinstance(total, int) else None)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _validator(headers: Message) -> str | None:
    """What `If-Range` may carry: a strong ETag, else the date."""
    tag = headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return headers.get("Last-Modified")


def _attempt(
    address: str, part: Path, out: IO[bytes], want: int | None, progress: Progress, timeout: float
) -> None:
    """Fetch what is missing of the file into `out`, open for appending."""
    note = _note(part)
    beginning = _read_beginning(part, note, address)
    request = urllib.request.Request(address, headers={"User-Agent": "retalk", "Accept-Encoding": "identity"})
    if beginning is not None:
        if beginning.size == beginning.total:
            return
        request.add_header("Range", f"bytes={beginning.size}-")
        request.add_header("If-Range", beginning.validator)
    opener = urllib.request.build_opener(_SafeRedirects())
    with opener.open(request, timeout=timeout) as response:
        start, total = _place(response, beginning)
        if want is not None and total is not None and total != want:
            raise DownloadError(f"{address} is {total} bytes and should be {want}; it is another file")
        if total is not None and shutil.disk_usage(part.parent).free < total - start + SPARE_BYTES:
            raise DownloadError(
                f"{address}: no room for {total - start} bytes more in {part.parent}; make some"
            )
        if start == 0:
            out.truncate(0)
            note.unlink(missing_ok=True)
            if (validator := _validator(response.headers)) is not None:
                note.write_text(json.dumps({"address": address, "validator": validator, "total": total}))
        have = start
        progress(have, total)
        while chunk := response.read(CHUNK):
            try:
                out.write(chunk)
            except OSError as error:
                raise _unwritable(part, error) from None
            have += len(chunk)
            progress(have, total)
    if total is not None and have != total:
        raise _Interrupted(f"it broke off after {have} of {total} bytes")


def _place(response: Any, beginning: _Beginning | None) -> tuple[int, int | None]:
    """Where in the file the response begins, and the size of the whole file if known."""
    if response.status == 206 and beginning is not None:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != beginning.size or beginning.total not in (None, int(match[2])):
            raise _Stale
        return beginning.size, int(match[2])
    if response.status != 200:
        raise DownloadError(f"{response.url}: the server answered {response.status} where 200 was due")
    length = response.headers.get("Content-Length")
    return 0, int(length) if length and length.isdigit() else None


def download(
    address: str,
    target: Path,
    *,
    expected: Digest | None = None,
    inspect: Callable[[Path], object] | None = None,
    progress: Progress = lambda have, total: None,
    timeout: float = TIMEOUT_S,
    pause: Callable[[float], None] = time.sleep,
) -> Digest:
    """Fetch `address` to `target`; what came before an interruption is kept beside it and continued.

    `target` appears in one step, once the file is whole, equals `expected` (where given) and `inspect` raised
    nothing; a file that fails either is deleted. A server that is busy or goes away is asked up to ATTEMPTS
    times in a row without more of the file. Raises DownloadError, and whatever `inspect` raises.
    """
    try:
        scheme = urllib.parse.urlsplit(address).scheme
    except ValueError:
        scheme = ""
    if scheme not in ("http", "https"):
        raise DownloadError(f"{address} is not an http or https address")
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        opened = part.open("ab")
    except OSError as error:
        raise _unwritable(part, error) from None
    with opened as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DownloadError(f"{target.name} is being downloaded by another process; wait") from None
        try:
            _persist(
                address, part, out, None if expected is None else expected.size, progress, timeout, pause
            )
        except BaseException:
            out.flush()
            if part.stat().st_size == 0:
                _discard(part)
            raise
        try:
            out.flush()
            os.fsync(out.fileno())
            got = digest(part)
        except OSError as error:
            raise _unwritable(part, error) from None
        try:
            if expected is not None and got != expected:
                raise DownloadError(
                    f"{target.name} from {address} has SHA-256 {got.sha256} ({got.size} bytes) "
                    f"and should have {expected.sha256} ({expected.size} bytes); it was deleted"
                )
            if inspect is not None:
                inspect(part)
        except BaseException:
            _discard(part)
            raise
        try:
            part.replace(target)
            _note(part).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(target, error) from None
    return got


def _unwritable(path: Path, error: OSError) -> DownloadError:
    return DownloadError(f"{path} cannot be written: {error.strerror or error}")


def _note(part: Path) -> Path:
    """Where the origin of a part is written down."""
    return part.with_name(part.name + ".json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _persist(
    address: str,
    part: Path,
    out: IO[bytes],
    want: int | None,
    progress: Progress,
    timeout: float,
    pause: Callable[[float], None],
) -> None:
    reason, attempt, most = "", 0, part.stat().st_size
    while attempt < ATTEMPTS:
        if attempt:
            pause(min(0.5 * 2.0**attempt, 8.0))
        try:
            _attempt(address, part, out, want, progress, timeout)
            return
        except urllib.error.HTTPError as error:
            with contextlib.closing(error):
                if error.code < 500 and error.code not in (408, 416, 425, 429):
                    hint = (
                        "; the address has changed, or the file is gone" if error.code in (404, 410) else ""
                    )
                    raise DownloadError(f"{address}: the server answered {error.code}{hint}") from None
                if error.code == 416:
                    _note(part).unlink(missing_ok=True)
                reason = f"the server answered {error.code}"
        except _Stale:
            _note(part).unlink(missing_ok=True)
            reason = "the file changed on the server"
        except (ValueError, http.client.InvalidURL) as error:
            raise DownloadError(
                f"{address}: it, or where the server redirects to, is not an address: {error}"
            ) from None
        except (_Interrupted, http.client.HTTPException, OSError) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        out.flush()
        # More than ever before: a server that begins anew each time makes no progress.
        have = part.stat().st_size
        attempt = 1 if have > most else attempt + 1
        most = max(most, have)
    raise DownloadError(f"{address}: gave up after {ATTEMPTS} attempts, {reason}; run it again to continue")
