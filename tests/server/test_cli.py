"""The commands as a shell sees them: exit codes, one line on stderr, no partial output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import wave
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RETALK_")}


def retalk(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.cli", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def write_wav(path: Path, seconds: float, rate: int = 16_000) -> Path:
    count = round(seconds * rate)
    tone = 8000 * np.sin(2 * np.pi * 220 * np.arange(count) / rate)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(tone.astype("<i2").tobytes())
    return path


def write_video(path: Path, frames: int = 5) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            picture = np.full((48, 64, 3), 20 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    return path


def write_sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_video(folder / "video.mp4")
    write_wav(folder / "voice.wav", 0.3)
    write_wav(folder / "empty.wav", 0)
    write_sound_only(folder / "sound.mp4")
    (folder / "text.mp4").write_text("This is no video.\n" * 20)
    (folder / "nothing.mp4").write_bytes(b"")
    (folder / "folder.mp4").mkdir()
    return folder


BAD_DUBS = {
    "missing video": (["gone.mp4", "voice.wav"], ["gone.mp4"]),
    "missing voice": (["video.mp4", "gone.wav"], ["gone.wav"]),
    "text named .mp4": (["text.mp4", "voice.wav"], ["text.mp4"]),
    "empty file": (["nothing.mp4", "voice.wav"], ["nothing.mp4"]),
    "folder": (["folder.mp4", "voice.wav"], ["folder.mp4"]),
    "no picture track": (["sound.mp4", "voice.wav"], ["sound.mp4", "picture"]),
    "zero-length voice": (["video.mp4", "empty.wav"], ["empty.wav"]),
    "voice without sound": (["video.mp4", "video.mp4"], ["video.mp4"]),
    "unknown engine": (["video.mp4", "voice.wav", "--engine", "nope"], ["nope", "talkin"]),
    "absent device": (["video.mp4", "voice.wav", "--device", "tpu"], ["tpu"]),
    "output in no folder": (["video.mp4", "voice.wav", "-o", "gone/out.mp4"], ["gone"]),
    "report in no folder": (["video.mp4", "voice.wav", "--report", "gone/r.json"], ["gone/r.json"]),
    "unknown idle": (["video.mp4", "voice.wav", "--idle", "nope"], ["nope", "source or rest"]),
    "output over the input": (["video.mp4", "voice.wav", "-o", "video.mp4"], ["video.mp4"]),
}


@pytest.mark.parametrize(("arguments", "named"), BAD_DUBS.values(), ids=BAD_DUBS.keys())
def test_bad_input_to_dub_is_one_clear_line(
    inputs: Path, arguments: Sequence[str], named: Sequence[str]
) -> None:
    output = [] if "-o" in arguments else ["-o", "out.mp4"]
    before = {path.name: path.stat().st_size for path in inputs.iterdir()}
    done = retalk("dub", *arguments, *output, "--consent", cwd=inputs)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for word in named:
        assert word in done.stderr
    assert {path.name: path.stat().st_size for path in inputs.iterdir()} == before


def test_a_dub_says_what_it_did_and_that_consent_was_given(inputs: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out.mp4", tmp_path / "report.json"
    done = retalk("dub", "video.mp4", "voice.wav", "-o", out, "--report", report, "--consent", cwd=inputs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: ")
    assert "consent to dub video.mp4 with voice.wav was given on the command line" in done.stderr
    assert json.loads(report.read_text())["engine"] == "talkin"
    with av.open(str(out)) as container:
        kinds = {stream.type: stream.codec_context.name for stream in container.streams}
    assert kinds == {"video": "h264", "audio": "aac"}


def test_a_dub_without_any_dubbed_frame_says_so_in_one_line(inputs: Path, tmp_path: Path) -> None:
    done = retalk("dub", "video.mp4", "voice.wav", "-o", tmp_path / "out.mp4", "--consent", cwd=inputs)
    assert done.returncode == 0, done.stderr
    assert ", 0 dubbed, in " in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if "was dubbed" in line]
    assert "no face was found; show one from the front" in line


def test_a_dub_whose_engine_failed_throughout_exits_with_1(inputs: Path, tmp_path: Path) -> None:
    program = (
        "import sys, retalk_models.talkin.engine as engine\n"
        "def process(self, window): raise RuntimeError('out of memory')\n"
        "engine.TalkinSession.process = process\n"
        "from server.cli import main\n"
        "main()\n"
    )
    out = tmp_path / "out.mp4"
    done = subprocess.run(
        [sys.executable, "-c", program, "dub", "video.mp4", "voice.wav", "-o", str(out), "--consent"],
        cwd=inputs,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "last with: RuntimeError: out of memory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_dub_leaves_nothing_behind(
    inputs: Path, tmp_path: Path, signal_number: signal.Signals
) -> None:
    write_wav(tmp_path / "long.wav", 600)
    command = [sys.executable, "-m", "server.cli", "dub", str(inputs / "video.mp4"), "long.wav"]
    running = subprocess.Popen(
        [*command, "-o", "out.mp4", "--consent", "--realtime"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    assert "consent" in running.stderr.readline()
    running.send_signal(signal_number)
    _, rest = running.communicate(timeout=60)
    assert running.returncode == 130, rest
    assert rest.splitlines()[-1] == "retalk: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["long.wav"]


def test_dub_wants_consent_and_says_why(inputs: Path) -> None:
    done = retalk("dub", "video.mp4", "voice.wav", "-o", "out.mp4", cwd=inputs)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--consent" in done.stderr
    assert not (inputs / "out.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "command"),
        (["nope"], "nope"),
        (["dub"], "VIDEO"),
        (["dub", "a", "b", "--nope"], "--nope"),
        (["serve", "--port", "99999"], "port"),
        (["serve", "--config", "gone.yaml"], "gone.yaml"),
        (["serve", "--engine", "nope"], "nope"),
        (["serve", "--look-ahead-ms", "60"], "80 or 120"),
        (["serve", "--look-ahead-ms", "80", "--engine", "videoretalking"], "look_ahead_ms"),
        (["bench", "--sessions", "0"], "sessions"),
        (["bench", "--size", "big"], "640x480"),
        (["bench", "--json", "gone/b.json"], "gone/b.json"),
        (["bench", "--video", "gone.mp4"], "gone.mp4"),
        (["models", "verify", "nope"], "nope"),
    ],
)
def test_bad_usage_is_one_clear_line(tmp_path: Path, arguments: Sequence[str], named: str) -> None:
    done = retalk(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert named in done.stderr


def test_an_unknown_key_in_a_settings_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("prot: 8081\n")
    done = retalk("serve", "--config", "bad.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("retalk: bad.yaml: unknown key 'prot'")
    assert done.stderr.count("\n") == 1


def test_models_are_listed_and_verified(tmp_path: Path) -> None:
    listed = retalk("models", "list", cwd=tmp_path)
    assert listed.returncode == 0
    names = [line.split()[0] for line in listed.stdout.splitlines() if line.endswith("as shipped")]
    assert "talkin_basis" in names
    for name in names:
        assert retalk("models", "verify", name, cwd=tmp_path).returncode == 0
    assert Path(retalk("models", "path", cwd=tmp_path).stdout.strip()).is_dir()


def test_a_shipped_weight_file_is_known_with_its_suffix_or_without(tmp_path: Path) -> None:
    for name in ("talkin_basis", "talkin_basis.safetensors"):
        place = retalk("models", "path", name, cwd=tmp_path)
        assert (place.returncode, Path(place.stdout.strip()).name) == (0, "talkin_basis.safetensors")
    verified = retalk("models", "verify", "talkin_basis.safetensors", cwd=tmp_path)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert verified.stdout.startswith("talkin_basis.safetensors: as shipped, SHA-256 ")
    for command in ("verify", "path"):
        mistyped = retalk("models", command, "talkin_bassis", cwd=tmp_path)
        assert (mistyped.returncode, mistyped.stderr.count("\n")) == (2, 1)
        assert "talkin_basis" in mistyped.stderr
        assert "DNet.pt" in mistyped.stderr


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['retalk', '--help']\n"
        "try:\n    import server.cli; server.cli.main()\n"
        "except SystemExit:\n    print(sorted({'torch', 'cv2', 'av', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
