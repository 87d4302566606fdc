"""Checks that this machine can serve and dub, each with what to do where it cannot."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal


class Verdict(StrEnum):
    """OK; NOTE: works, with a limit worth knowing; BROKEN: something that is promised will fail."""

    OK = "ok"
    NOTE = "note"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. remedy: what to do about it, empty where there is nothing to do."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def examine(host: str, port: int, device: str, ice_servers: Sequence[str] = ()) -> Iterator[Finding]:
    """Run every check, yielding each finding as it is known. A check that raises is BROKEN."""
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("packages", check_packages),
        ("port", lambda: check_port(host, port)),
        ("codecs", check_codecs),
        ("device", lambda: check_device(device)),
        ("weights", check_weights),
        ("face tracker", check_face_tracker),
        ("voice activity", check_voice_activity),
        ("hearing", check_hearing),
        ("browser client", check_client),
        ("sample presenter", check_presenter),
        ("ICE", lambda: check_ice(ice_servers)),
    )
    for name, check in checks:
        try:
            yield check()
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            yield Finding(name, Verdict.BROKEN, reason, "reinstall with: make clean setup")


def check_packages() -> Finding:
    """Every package that retalk asks for is here, in a version that it was made for."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    wrong = []
    for asked in map(Requirement, requires("retalk") or []):
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(asked.name)
        except PackageNotFoundError:
            wrong.append(f"{asked.name} is missing")
            continue
        if not asked.specifier.contains(installed, prereleases=True):
            wrong.append(f"{asked.name} is {installed}, not {asked.specifier}")
    python = ".".join(map(str, sys.version_info[:3]))
    if wrong:
        return Finding("packages", Verdict.BROKEN, "; ".join(wrong), "reinstall with: make clean setup")
    return Finding("packages", Verdict.OK, f"all as asked, Python {python}")


def check_port(host: str, port: int) -> Finding:
    try:
        with socket.create_server((host, port)):
            return Finding("port", Verdict.OK, f"{host}:{port} is free")
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        return Finding(
            "port",
            Verdict.BROKEN,
            f"cannot listen on {host}:{port}: {reason}",
            f"stop what uses it, or choose another: retalk serve --port {port + 1 if port < 65535 else 8080}",
        )


def check_codecs() -> Finding:
    """libx264 and aac write files; libx264, libvpx and libopus speak WebRTC; decoders read what comes."""
    import av
    from av.codec.codec import UnknownCodecError

    missing = []
    wanted: tuple[tuple[str, Literal["r", "w"]], ...] = (
        ("libx264", "w"),
        ("aac", "w"),
        ("libvpx", "w"),
        ("libopus", "w"),
        ("h264", "r"),
        ("vp8", "r"),
        ("libopus", "r"),
    )
    for name, mode in wanted:
        try:
            av.codec.Codec(name, mode)
        except UnknownCodecError:
            missing.append(f"{name} ({'encoder' if mode == 'w' else 'decoder'})")
    if missing:
        return Finding(
            "codecs",
            Verdict.BROKEN,
            f"PyAV {av.__version__} lacks {', '.join(missing)}",
            "install PyAV's own wheel instead of one built against the system's FFmpeg: "
            "pip install --force-reinstall --only-binary av av==18.1.0",
        )
    return Finding("codecs", Verdict.OK, f"H.264, VP8, Opus and AAC in PyAV {av.__version__}")


def check_device(device: str) -> Finding:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return Finding(
            "device",
            Verdict.BROKEN,
            f"{device} was asked for, and torch {torch.__version__} sees no CUDA device",
            "install a CUDA build of torch and the driver for it, or use --device auto",
        )
    if device != "cpu" and torch.cuda.is_available():
        return Finding("device", Verdict.OK, f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}")
    return Finding("device", Verdict.OK, f"CPU, torch {torch.__version__}; the embedded engine needs no more")


def check_weights() -> Finding:
    from retalk_models.checkpoints import bundled

    bad = [f"{one.path.name} {one.fault}" for one in bundled() if one.fault]
    if bad:
        return Finding(
            "weights", Verdict.BROKEN, "; ".join(bad), "restore them: git checkout retalk_models/weights"
        )
    return Finding("weights", Verdict.OK, ", ".join(one.path.name for one in bundled()))


def check_face_tracker() -> Finding:
    """Loads the bundled Face Mesh and runs it once: an import alone would not notice a missing model."""
    import mediapipe
    import numpy as np

    with mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True, refine_landmarks=True) as mesh:
        mesh.process(np.zeros((64, 64, 3), np.uint8))
    return Finding("face tracker", Verdict.OK, f"MediaPipe {mediapipe.__version__} with its own models")


def check_voice_activity() -> Finding:
    import webrtcvad

    webrtcvad.Vad(2).is_speech(bytes(640), 16_000)
    return Finding("voice activity", Verdict.OK, "webrtcvad answers")


def check_hearing() -> Finding:
    """Loads the speech encoder that the talkin engine hears with."""
    from retalk_models.hearing import REMEDY, SpeechEncoderError, speech_encoder

    try:
        speech_encoder()
    except SpeechEncoderError as error:
        return Finding("hearing", Verdict.BROKEN, str(error), REMEDY)
    return Finding("hearing", Verdict.OK, "moonshine-voice's speech encoder can be read")


def check_client() -> Finding:
    page = Path(__file__).resolve().parent.parent / "client_web" / "index.html"
    if not page.is_file():
        return Finding(
            "browser client", Verdict.BROKEN, f"{page} is missing", "restore it: git checkout client_web"
        )
    return Finding("browser client", Verdict.OK, "installed")


def check_presenter() -> Finding:
    from importlib.util import find_spec

    if find_spec("skimage") is None:
        return Finding(
            "sample presenter",
            Verdict.NOTE,
            "scikit-image is not installed, so the sample presenter is not there",
            "pip install 'retalk[demo]', or publish a camera or your own file",
        )
    return Finding("sample presenter", Verdict.OK, "scikit-image's public-domain portrait")


def check_ice(servers: Sequence[str]) -> Finding:
    """Gathers candidates as a peer would; needs an interface, and no internet."""
    import ipaddress

    import aioice

    async def gather() -> list[aioice.Candidate]:
        connection = aioice.Connection(ice_controlling=True)
        try:
            await asyncio.wait_for(connection.gather_candidates(), timeout=10)
            return list(connection.local_candidates)
        finally:
            await connection.close()

    hosts = sorted({candidate.host for candidate in asyncio.run(gather())})
    turn = any(server.startswith(("turn:", "turns:")) for server in servers)
    if not any(not ipaddress.ip_address(address).is_loopback for address in hosts):
        return Finding(
            "ICE",
            Verdict.NOTE,
            "only the loopback interface: browsers on this machine alone can connect",
            "connect a network interface, where others should watch",
        )
    if not turn:
        return Finding(
            "ICE",
            Verdict.NOTE,
            f"{len(hosts)} address{'es' * (len(hosts) > 1)} to offer; no TURN server configured",
            "set ice_servers where viewers sit behind a firewall that blocks UDP",
        )
    return Finding("ICE", Verdict.OK, f"{len(hosts)} addresses to offer, TURN configured")
