from __future__ import annotations

import fcntl
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from retalk_models.download import ATTEMPTS, Digest, DownloadError, download

DATA = bytes((index * 37 + index // 251) % 256 for index in range(300_000))
DIGEST = Digest(len(DATA), hashlib.sha256(DATA).hexdigest())


@dataclass
class Script:
    """What the server does. Each list is used up one entry per request for /file."""

    data: bytes = DATA
    etag: str | None = '"one"'
    ranges: bool = True
    length: bool = True
    cut_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    redirect: str = "/file"
    asked: list[str | None] = field(default_factory=list)
    on_request: Callable[[int], None] = lambda count: None


class Handler(BaseHTTPRequestHandler):
    script: Script

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        script = self.script
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", script.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        script.asked.append(self.headers.get("Range"))
        script.on_request(len(script.asked))
        if self.path != "/file":
            self.send_error(404)
            return
        if script.statuses and (status := script.statuses.pop(0)) != 200:
            self.send_error(status)
            return
        self.send_file(script)

    def send_file(self, script: Script) -> None:
        start = 0
        wanted = self.headers.get("Range")
        if wanted and script.ranges and self.headers.get("If-Range") == script.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(script.data) and start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(script.data) - 1}/{len(script.data)}")
        if script.etag:
            self.send_header("ETag", script.etag)
        if script.length:
            self.send_header("Content-Length", str(len(script.data) - start))
        self.end_headers()
        end = script.cut_after.pop(0) if script.cut_after else len(script.data)
        self.wfile.write(script.data[start:end])


@dataclass
class Server:
    address: str
    script: Script


@pytest.fixture
def server() -> Iterator[Server]:
    script = Script()
    handler = type("Scripted", (Handler,), {"script": script})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    yield Server(f"http://127.0.0.1:{running.server_address[1]}", script)
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "x.pth"


@dataclass
class Fetched:
    digest: Digest
    pauses: list[float]
    progress: list[tuple[int, int | None]]


def fetch(
    address: str,
    target: Path,
    expected: Digest | None = None,
    inspect: Callable[[Path], object] | None = None,
) -> Fetched:
    pauses: list[float] = []
    progress: list[tuple[int, int | None]] = []
    got = download(
        address,
        target,
        expected=expected,
        inspect=inspect,
        progress=lambda have, total: progress.append((have, total)),
        timeout=10,
        pause=pauses.append,
    )
    return Fetched(got, pauses, progress)


def left(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_file_arrives_whole_with_progress(server: Server, target: Path) -> None:
    got = fetch(server.address + "/file", target, DIGEST)
    assert target.read_bytes() == DATA
    assert got.digest == DIGEST
    assert got.progress[0] == (0, len(DATA))
    assert got.progress[-1] == (len(DATA), len(DATA))
    assert left(target) == ["x.pth"]


def test_a_broken_connection_is_resumed_where_it_stopped(server: Server, target: Path) -> None:
    server.script.cut_after = [100_000, 200_000]
    got = fetch(server.address + "/file", target, DIGEST)
    assert target.read_bytes() == DATA
    assert server.script.asked == [None, "bytes=100000-", "bytes=200000-"]
    assert got.pauses == sorted(got.pauses)
    assert len(got.pauses) == 2


def test_a_later_run_continues_an_earlier_one(server: Server, target: Path) -> None:
    server.script.cut_after = [100_000] * ATTEMPTS
    with pytest.raises(
        DownloadError, match=r"gave up after 5 attempts, it broke off after 100000 of 300000 bytes"
    ):
        fetch(server.address + "/file", target)
    assert not target.exists()
    assert left(target) == ["x.pth.part", "x.pth.part.json"]
    server.script.asked.clear()
    assert fetch(server.address + "/file", target).digest == DIGEST
    assert server.script.asked == ["bytes=100000-"]
    assert left(target) == ["x.pth"]


def test_a_complete_part_needs_no_more_bytes(server: Server, target: Path) -> None:
    server.script.cut_after = [100_000] * ATTEMPTS
    with pytest.raises(DownloadError):
        fetch(server.address + "/file", target)
    part = target.with_name("x.pth.part")
    part.write_bytes(DATA)
    server.script.asked.clear()
    assert fetch(server.address + "/file", target).digest == DIGEST
    assert server.script.asked == []


def test_a_file_that_changed_meanwhile_starts_over(server: Server, target: Path) -> None:
    server.script.cut_after = [100_000]

    def change(count: int) -> None:
        if count == 2:
            server.script.data, server.script.etag = DATA[::-1], '"two"'

    server.script.on_request = change
    fetch(server.address + "/file", target)
    assert target.read_bytes() == DATA[::-1]


def test_a_part_of_another_address_is_not_continued(server: Server, target: Path) -> None:
    server.script.cut_after = [100_000] * ATTEMPTS
    with pytest.raises(DownloadError):
        fetch(server.address + "/file", target)
    server.script.asked.clear()
    server.script.redirect = "/file"
    assert fetch(server.address + "/moved", target).digest == DIGEST
    assert server.script.asked == [None]


@pytest.mark.parametrize("attribute", ["etag", "ranges"])
def test_a_server_that_cannot_resume_gives_the_file_anew(
    attribute: str, server: Server, target: Path
) -> None:
    setattr(server.script, attribute, None if attribute == "etag" else False)
    server.script.cut_after = [100_000]
    assert fetch(server.address + "/file", target).digest == DIGEST
    assert len(server.script.asked) == 2


def test_a_part_longer_than_the_file_starts_over(server: Server, target: Path) -> None:
    server.script.cut_after = [100_000] * ATTEMPTS
    with pytest.raises(DownloadError):
        fetch(server.address + "/file", target)
    target.with_name("x.pth.part").write_bytes(DATA + b"more")
    assert fetch(server.address + "/file", target).digest == DIGEST
    assert target.read_bytes() == DATA


def test_a_file_of_unknown_length_arrives(server: Server, target: Path) -> None:
    server.script.length = False
    got = fetch(server.address + "/file", target, DIGEST)
    assert got.progress[-1] == (len(DATA), None)


def test_a_cut_file_of_unknown_length_is_caught_by_its_hash(server: Server, target: Path) -> None:
    server.script.length = False
    server.script.cut_after = [100_000]
    with pytest.raises(DownloadError, match="it was deleted"):
        fetch(server.address + "/file", target, DIGEST)
    assert left(target) == []


def test_a_wrong_hash_is_deleted_and_named(server: Server, target: Path) -> None:
    wrong = Digest(len(DATA), "0" * 64)
    with pytest.raises(
        DownloadError, match=rf"x\.pth .*{DIGEST.sha256} \(300000 bytes\) and should have 0{{64}}"
    ):
        fetch(server.address + "/file", target, wrong)
    assert left(target) == []


def test_another_size_is_refused_before_it_is_fetched(server: Server, target: Path) -> None:
    with pytest.raises(DownloadError, match="is 300000 bytes and should be 7; it is another file"):
        fetch(server.address + "/file", target, Digest(7, "0" * 64))
    assert left(target) == []


def test_what_fails_inspection_is_deleted(server: Server, target: Path) -> None:
    def inspect(path: Path) -> None:
        assert path.read_bytes() == DATA
        raise ValueError("no net in here")

    with pytest.raises(ValueError, match="no net in here"):
        fetch(server.address + "/file", target, inspect=inspect)
    assert left(target) == []


def test_a_missing_file_is_not_asked_for_twice(server: Server, target: Path) -> None:
    with pytest.raises(DownloadError, match=r"/gone: the server answered 404; the address has changed"):
        fetch(server.address + "/gone", target)
    assert len(server.script.asked) == 1
    assert left(target) == []


def test_a_busy_server_is_asked_again(server: Server, target: Path) -> None:
    server.script.statuses = [503, 429, 200]
    got = fetch(server.address + "/file", target)
    assert got.digest == DIGEST
    assert len(got.pauses) == 2


def test_a_server_that_stays_busy_is_given_up(server: Server, target: Path) -> None:
    server.script.statuses = [503] * 20
    with pytest.raises(
        DownloadError, match="gave up after 5 attempts, the server answered 503; run it again"
    ):
        fetch(server.address + "/file", target)
    assert len(server.script.asked) == ATTEMPTS


def test_nobody_there_is_one_line(target: Path) -> None:
    with pytest.raises(DownloadError, match=r"gave up after 5 attempts, .*refused") as caught:
        fetch("http://127.0.0.1:9/file", target)
    assert "\n" not in str(caught.value)
    assert left(target) == []


def test_a_redirect_is_followed(server: Server, target: Path) -> None:
    server.script.cut_after = [100_000]
    assert fetch(server.address + "/moved", target).digest == DIGEST
    assert server.script.asked == [None, "bytes=100000-"]


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/file"])
def test_a_redirect_out_of_http_is_refused(address: str, server: Server, target: Path) -> None:
    server.script.redirect = address
    with pytest.raises(DownloadError):
        fetch(server.address + "/moved", target)
    assert left(target) == []


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/x", "x.pth"])
def test_other_schemes_are_refused(address: str, target: Path) -> None:
    with pytest.raises(DownloadError, match="is not an http or https address"):
        fetch(address, target)


@pytest.mark.parametrize("address", ["http://[", "http://127.0.0.1:port/x", "http://a b/"])
def test_a_redirect_to_no_address_was_a_fault(address: str, server: Server, target: Path) -> None:
    server.script.redirect = address
    with pytest.raises(DownloadError) as caught:
        fetch(server.address + "/moved", target)
    assert "is not an address" in str(caught.value)
    assert left(target) == []
    with pytest.raises(DownloadError):
        fetch(address, target)


def test_a_download_that_kept_breaking_off_was_given_up(server: Server, target: Path) -> None:
    server.script.cut_after = list(range(30_000, 300_000, 30_000))
    got = fetch(server.address + "/file", target, DIGEST)
    assert len(got.pauses) == 9
    assert max(got.pauses) == 1.0, "each brought something, so none waits longer"


def test_a_server_that_begins_anew_each_time_is_given_up(server: Server, target: Path) -> None:
    server.script.ranges = False
    server.script.cut_after = [30_000] * 20
    with pytest.raises(DownloadError, match="gave up after 5 attempts"):
        fetch(server.address + "/file", target)
    assert len(server.script.asked) == ATTEMPTS


def test_a_place_that_cannot_be_written_was_a_fault(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match=r"file/x\.pth\.part cannot be written: File exists"):
        fetch(server.address + "/file", tmp_path / "file" / "x.pth")
    (tmp_path / "x.pth.part").mkdir()
    with pytest.raises(DownloadError, match=r"x\.pth\.part cannot be written: Is a directory"):
        fetch(server.address + "/file", tmp_path / "x.pth")
    (tmp_path / "y.pth" / "z").mkdir(parents=True)
    with pytest.raises(DownloadError, match=r"y\.pth cannot be written: Is a directory"):
        fetch(server.address + "/file", tmp_path / "y.pth")


def test_two_downloads_of_one_file_do_not_meet(server: Server, target: Path) -> None:
    target.parent.mkdir()
    with target.with_name("x.pth.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="being downloaded by another process"):
            fetch(server.address + "/file", target)
    assert fetch(server.address + "/file", target).digest == DIGEST
