from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import retalk_models.store
from retalk_models.download import Digest, DownloadError, digest
from retalk_models.store import (
    LEDGER,
    CheckpointError,
    CheckpointFile,
    CheckpointStore,
    MissingCheckpointsError,
    State,
    TermsDeclinedError,
    default_folder,
)

DATA = b"net" * 1000
DIGEST = Digest(len(DATA), hashlib.sha256(DATA).hexdigest())


def must_begin_with_net(path: Path) -> None:
    if not path.read_bytes().startswith(b"net"):
        raise ValueError(f"{path.name} does not hold a net")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "x.pth").write_bytes(DATA)
    return folder


@pytest.fixture
def file(release: Path) -> Iterator[CheckpointFile]:
    """A file of a release on a local server, with nothing published about its content."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(release)))
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    address = f"http://127.0.0.1:{running.server_address[1]}/x.pth"
    yield CheckpointFile("x.pth", address, "testing", "test use only", must_begin_with_net)
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "models")


def yes(file: CheckpointFile) -> bool:
    return True


def test_the_first_download_is_agreed_to_and_recorded(store: CheckpointStore, file: CheckpointFile) -> None:
    shown: list[str] = []

    def agree(asked: CheckpointFile) -> bool:
        shown.append(asked.terms)
        return True

    assert store.known(file) is None
    assert store.pull(file, agree=agree).read_bytes() == DATA
    assert shown == ["test use only"]
    assert store.known(file) == DIGEST
    assert json.loads((store.folder / LEDGER).read_text()) == {
        "x.pth": {"size": DIGEST.size, "sha256": DIGEST.sha256}
    }
    store.pull(file, agree=agree)
    assert len(shown) == 1, "what is there is not asked about"


def test_without_agreement_nothing_is_downloaded(store: CheckpointStore, file: CheckpointFile) -> None:
    with pytest.raises(TermsDeclinedError, match=r"x\.pth was not downloaded.*test use only"):
        store.pull(file, agree=lambda asked: False)
    assert not store.folder.exists()


def test_a_second_download_must_equal_the_first(
    store: CheckpointStore, file: CheckpointFile, release: Path
) -> None:
    store.pull(file, agree=yes).unlink()
    (release / "x.pth").write_bytes(DATA[::-1])
    with pytest.raises(DownloadError, match=rf"should have {DIGEST.sha256}"):
        store.pull(file, agree=yes)
    assert not store.path(file).exists()


def test_a_published_hash_rules_from_the_start(store: CheckpointStore, file: CheckpointFile) -> None:
    with pytest.raises(DownloadError, match="it was deleted"):
        store.pull(replace(file, published=Digest(DIGEST.size, "f" * 64)), agree=yes)
    assert store.pull(replace(file, published=DIGEST), agree=yes).exists()


def test_what_is_no_net_is_neither_kept_nor_recorded(
    store: CheckpointStore, file: CheckpointFile, release: Path
) -> None:
    (release / "x.pth").write_bytes(b"<html>")
    with pytest.raises(
        CheckpointError, match=r"what http://\S+ gave was deleted: x\.pth.* does not hold a net"
    ):
        store.pull(file, agree=yes)
    assert store.known(file) is None
    assert list(store.folder.iterdir()) == []


def test_a_file_put_there_by_hand_is_recorded_at_its_first_use(
    store: CheckpointStore, file: CheckpointFile
) -> None:
    store.folder.mkdir()
    store.path(file).write_bytes(DATA)
    assert store.use(file) == store.path(file)
    assert store.known(file) == DIGEST


def test_a_changed_file_is_refused(store: CheckpointStore, file: CheckpointFile) -> None:
    store.pull(file, agree=yes)
    store.path(file).write_bytes(DATA + b"net")
    with pytest.raises(CheckpointError, match=r"x\.pth in .* and should have .*; delete it and get it again"):
        store.use(file)
    with pytest.raises(CheckpointError, match="delete it and get it again"):
        store.pull(file, agree=yes)


def test_verdicts(store: CheckpointStore, file: CheckpointFile) -> None:
    assert store.verify(file).state is State.MISSING
    store.folder.mkdir()
    store.path(file).write_bytes(b"text")
    verdict = store.verify(file)
    assert verdict.state is State.BAD
    assert verdict.detail.startswith("x.pth does not hold a net")
    assert store.known(file) is None
    store.path(file).write_bytes(DATA)
    assert store.verify(file).state is State.GOOD
    assert store.verify(file).found == DIGEST
    store.path(file).write_bytes(b"net")
    assert store.verify(file).state is State.CHANGED


def test_all_missing_files_are_named_at_once_with_terms_and_command(
    store: CheckpointStore, file: CheckpointFile
) -> None:
    other = replace(file, name="y.pth", terms="other terms")
    with pytest.raises(MissingCheckpointsError) as caught:
        store.require([file, other], "retalk models pull x")
    message = str(caught.value)
    assert [missing.name for missing in caught.value.missing] == ["x.pth", "y.pth"]
    assert all(
        part in message for part in ("x.pth", "test use only", "y.pth", "other terms", str(store.folder))
    )
    assert message.endswith("get them with: retalk models pull x")
    store.pull(file, agree=yes)
    with pytest.raises(MissingCheckpointsError) as caught:
        store.require([file, other], "retalk models pull x")
    assert [missing.name for missing in caught.value.missing] == ["y.pth"]
    assert store.require([file], "retalk models pull x") == {"x.pth": store.path(file)}


@pytest.mark.parametrize("text", ["", "[]", '{"x.pth": 3}', '{"x.pth": {"size": 3}}'])
def test_a_damaged_ledger_is_named(text: str, store: CheckpointStore, file: CheckpointFile) -> None:
    store.pull(file, agree=yes)
    (store.folder / LEDGER).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{LEDGER} is not a readable ledger"):
        store.use(file)


def test_files_were_read_and_inspected_over_and_over(
    store: CheckpointStore, file: CheckpointFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path) -> Digest:
        read.append("read")
        return digest(path)

    def inspect(path: Path) -> None:
        read.append("inspected")

    monkeypatch.setattr(retalk_models.store, "digest", counted)
    file = replace(file, inspect=inspect)
    store.folder.mkdir()
    store.path(file).write_bytes(DATA)
    for _ in range(3):
        CheckpointStore(store.folder).require([file], "")
    assert read == ["read", "inspected"]
    # The next process knows it, and need not look inside.
    monkeypatch.setattr(retalk_models.store, "_GOOD", {})
    store.use(file)
    assert read == ["read", "inspected", "read"]
    store.path(file).write_bytes(DATA + b"x")
    with pytest.raises(CheckpointError, match="should have"):
        store.use(file)
    assert store.verify(file).state is State.CHANGED


def test_a_ledger_that_cannot_be_written_was_a_fault(
    store: CheckpointStore, file: CheckpointFile, caplog: pytest.LogCaptureFixture
) -> None:
    (store.folder / f"{LEDGER}.{os.getpid()}").mkdir(parents=True)
    assert store.pull(file, agree=yes).read_bytes() == DATA
    assert f"{store.folder / LEDGER} cannot be written" in caplog.text
    assert DIGEST.sha256 in caplog.text
    assert store.use(file) == store.path(file)
    assert store.known(file) is None


def test_files_that_cannot_be_read_are_named(
    store: CheckpointStore, file: CheckpointFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pull(file, agree=yes)

    def refuse(path: Path) -> Digest:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(retalk_models.store, "digest", refuse)
    with pytest.raises(CheckpointError, match=r"models/x\.pth cannot be read: Permission denied"):
        store.use(file)
    monkeypatch.undo()
    (store.folder / LEDGER).unlink()
    (store.folder / LEDGER).mkdir()
    with pytest.raises(CheckpointError, match=rf"{LEDGER} cannot be read: Is a directory"):
        store.use(file)


def test_two_processes_that_record_at_once_both_stay_recorded(store: CheckpointStore) -> None:
    store.folder.mkdir()
    stores = [CheckpointStore(store.folder) for _ in range(8)]
    threads = [
        threading.Thread(target=one._record, args=(f"{number}.pth", DIGEST))
        for number, one in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads((store.folder / LEDGER).read_text())) == 8


def test_the_folder_is_where_the_environment_says() -> None:
    assert default_folder({"RETALK_MODELS": "/srv/m"}) == Path("/srv/m")
    assert default_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/retalk/models")
    assert default_folder({}) == Path.home() / ".cache" / "retalk" / "models"
