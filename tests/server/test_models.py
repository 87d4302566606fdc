"""`retalk models` against a local server, and the engine's commands without files or with bad ones."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from retalk_models.videoretalking.files import FILES
from server.cli import app, bad_input
from server.console import guard
from tests.retalk_models.videoretalking import synthetic
from tests.retalk_models.videoretalking.test_files import Bomb, flat
from tests.server.test_cli import ENVIRONMENT, write_video, write_wav
from tests.server.test_cli import retalk as in_a_process


@dataclass
class Release:
    """A folder served as a release. moved: redirect first. cut: after how many bytes answers break off."""

    folder: Path
    address: str = ""
    moved: bool = False
    cut: dict[str, list[int]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    release: Release

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        release, name = self.release, self.path.rpartition("/")[2]
        if release.moved and not self.path.startswith("/elsewhere/"):
            self.send_response(302)
            self.send_header("Location", f"{release.address}/elsewhere/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = self.headers.get("Range")
        release.asked.append((name, wanted))
        path = release.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cuts = release.cut.get(name, [])
        self.wfile.write(data[start : cuts.pop(0) if cuts else len(data)])


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every official file in its layout, a few kilobytes each."""
    return synthetic.write_models(tmp_path_factory.mktemp("official"), flat)


@pytest.fixture
def release(official: Path, tmp_path: Path) -> Iterator[Release]:
    folder = tmp_path / "release"
    shutil.copytree(official, folder)
    release = Release(folder)
    running = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Handler,), {"release": release}))
    release.address = f"http://127.0.0.1:{running.server_address[1]}"
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    yield release
    running.shutdown()
    running.server_close()
    thread.join()


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Retalk = Callable[..., Done]


@pytest.fixture
def retalk(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Retalk:
    """Runs the command in this process (torch is slow to import), with a model folder of its own.

    Where there is a release, it stands in for the real ones.
    """
    for name in set(os.environ) - set(ENVIRONMENT):
        monkeypatch.delenv(name)
    monkeypatch.setenv("RETALK_MODELS", str(tmp_path / "models"))
    if "release" in request.fixturenames:
        monkeypatch.setenv("RETALK_MODELS_MIRROR", request.getfixturevalue("release").address)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Done:
        given = [str(one) for one in arguments]
        capsys.readouterr()
        code = guard("retalk", lambda: app(given, standalone_mode=False), bad_input)
        said = capsys.readouterr()
        return Done(int(code), said.out, said.err)

    return run


def test_pull_shows_the_terms_downloads_all_and_they_verify(
    retalk: Retalk, release: Release, tmp_path: Path
) -> None:
    declined = retalk("models", "pull", "videoretalking")
    assert declined.returncode == 2
    assert FILES[0].terms in declined.stderr
    assert "--agree" in declined.stderr
    assert release.asked == []
    release.moved = True
    release.cut = {"LNet.pth": [1000]}
    pulled = retalk("models", "pull", "videoretalking", "--agree")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout.count("downloaded, SHA-256") == len(FILES)
    for file in FILES:
        assert file.terms in pulled.stderr
        assert (tmp_path / "models" / file.name).read_bytes() == (release.folder / file.name).read_bytes()
    assert ("LNet.pth", "bytes=1000-") in release.asked
    again = retalk("models", "pull", "videoretalking")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("was here") == len(FILES)
    verified = retalk("models", "verify", "videoretalking")
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.count("good, SHA-256") == len(FILES)
    listed = retalk("models", "list").stdout.splitlines()
    assert sum(line.endswith("  here") for line in listed) == len(FILES)
    with (tmp_path / "models" / "DNet.pt").open("ab") as file_object:
        file_object.write(b"\0")
    changed = retalk("models", "verify", "DNet.pt")
    assert changed.returncode == 1
    assert changed.stderr.count("\n") == 1
    assert "DNet.pt" in changed.stderr
    assert "should have" in changed.stderr


def test_what_is_not_there_or_another_file_is_one_clear_line(
    retalk: Retalk, release: Release, tmp_path: Path
) -> None:
    (release.folder / "DNet.pt").unlink()
    gone = retalk("models", "pull", "DNet.pt", "--agree")
    assert gone.returncode == 1
    assert gone.stderr.splitlines()[-1] == (
        f"retalk: {release.address}/DNet.pt: the server answered 404; "
        "the address has changed, or the file is gone"
    )
    # GFPGAN's size and hash were published, so that any other file is refused at once.
    (release.folder / "GFPGANv1.3.pth").write_bytes(b"x" * 1000)
    other = retalk("models", "pull", "gfpgan", "--agree")
    assert other.returncode == 1
    assert "is 1000 bytes and should be 348632874" in other.stderr.splitlines()[-1]
    truncated = (release.folder / "LNet.pth").read_bytes()[:-400]
    (release.folder / "LNet.pth").write_bytes(truncated)
    broken = retalk("models", "pull", "LNet.pth", "--agree")
    assert broken.returncode == 2
    assert "was deleted" in broken.stderr.splitlines()[-1]
    assert "LNet.pth" in broken.stderr.splitlines()[-1]
    marker = tmp_path / "executed"
    torch.save({"state_dict": flat("enet"), "scheduler": Bomb(marker)}, release.folder / "ENet.pth")
    bomb = retalk("models", "pull", "ENet.pth", "--agree")
    assert bomb.returncode == 2
    assert "never loaded" in bomb.stderr.splitlines()[-1]
    assert not marker.exists()
    assert [path.name for path in (tmp_path / "models").iterdir() if path.suffix in (".pt", ".pth")] == []


def test_the_engine_without_files_names_each_its_terms_and_the_command(
    retalk: Retalk, tmp_path: Path
) -> None:
    write_video(tmp_path / "video.mp4")
    write_wav(tmp_path / "voice.wav", 0.3)
    dub = ["dub", "video.mp4", "voice.wav", "-o", "out.mp4", "--consent"]
    for command in (["serve", "--port", "0"], dub):
        done = retalk(*command, "--engine", "videoretalking")
        assert done.returncode == 2, done.stderr
        for file in FILES:
            assert file.name in done.stderr
            assert file.terms in done.stderr
        assert done.stderr.splitlines()[-1] == "get them with: retalk models pull videoretalking"
    assert not (tmp_path / "out.mp4").exists()


def test_a_process_that_is_to_serve_without_files_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "RETALK_MODELS", str(tmp_path / "models"))
    done = in_a_process("serve", "--port", "0", "--engine", "videoretalking", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"retalk: model files are missing in {tmp_path / 'models'}:\n  DNet.pt: ")


def test_the_engine_refuses_bad_files_and_runs_nothing(
    retalk: Retalk, official: Path, tmp_path: Path
) -> None:
    models, marker = tmp_path / "models", tmp_path / "executed"
    shutil.copytree(official, models)
    write_video(tmp_path / "video.mp4")
    write_wav(tmp_path / "voice.wav", 0.3)

    def refused(*command: str) -> str:
        done = retalk(*command, "--engine", "videoretalking")
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert not marker.exists()
        return done.stderr

    dub = ["dub", "video.mp4", "voice.wav", "-o", "out.mp4", "--consent"]
    good = (models / "LNet.pth").read_bytes()
    torch.save({"state_dict": flat("lnet"), "scheduler": Bomb(marker)}, models / "LNet.pth")
    assert "LNet.pth is damaged, or holds objects other than plain tensors" in refused("serve", "--port", "0")
    (models / "LNet.pth").write_bytes(good[: len(good) // 2])
    assert "LNet.pth" in refused(*dub)
    wrong = flat("lnet")
    del wrong["decoder.final.model.0.bias"]
    synthetic.save(wrong, models / "LNet.pth", "state_dict")
    assert "does not hold the official L-Net: decoder.final.model.0.bias is missing" in refused(*dub)
    (models / "LNet.pth").write_bytes(os.urandom(5000))
    assert "LNet.pth is" in refused(*dub)
    assert not (tmp_path / "out.mp4").exists()
