"""Two sessions on one server for half an hour: does memory grow, does latency?

Starts `retalk serve`, opens sessions whose source is a small film that loops, speaks over their voice sockets
without end, and watches each over WebRTC. Every ten seconds it takes the server's resident memory, threads,
descriptors and processor time, and each session's added latency. Prints the slope of each with its 95 %
confidence interval, from means over five minutes, since neighbouring samples are alike: a slope whose
interval holds zero is none.

    python -m benchmarks.soak CLIP VOICE [--minutes 30] [--sessions 2] [--size 320x180] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import psutil
from aiortc import RTCPeerConnection, RTCSessionDescription
from numpy.typing import NDArray
from scipy import stats
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.processes import cpu_s, descriptors, memory_mb, own_memory_mb, threads
from stream.frames import frame_of
from stream.material import Material, load_material
from tests.e2e.conftest import serving
from tests.server.rtc import client
from tests.server.watcher import Watcher

EVERY_S = 10.0
SETTLE_S = 120.0
BLOCK_S = 300.0


@dataclass
class Taken:
    """One row per sample: seconds since the start, and the figures by name."""

    seconds: list[float] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, seconds: float, **figures: float) -> None:
        self.seconds.append(seconds)
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)


def write_film(material: Material, path: Path) -> None:
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=round(material.fps))
        video.width, video.height = material.frames[0].width, material.frames[0].height
        video.pix_fmt = "yuv420p"
        for index, picture in enumerate(material.frames):
            frame = frame_of(picture)
            frame.pts = index
            out.mux(video.encode(frame))
        out.mux(video.encode(None))


async def speak(socket: ClientConnection, chunks: Iterator[NDArray[np.int16]]) -> None:
    """Say 48 kHz speech, as far as the server gives credit."""
    await socket.send(json.dumps({"type": "start", "rate": 48_000, "channels": 1, "format": "s16le"}))
    credit_ms = 0
    async for text in socket:
        message = json.loads(text)
        if message["type"] == "credit":
            credit_ms += message["ms"]
        while credit_ms >= 20:
            await socket.send(next(chunks).astype("<i2").tobytes())
            credit_ms -= 20


async def watch(address: str, given: dict[str, Any], peer: RTCPeerConnection) -> ClientConnection:
    """Join a session as a viewer; the socket stays open."""
    peer.addTransceiver("video", direction="recvonly")
    peer.addTransceiver("audio", direction="recvonly")
    socket = await connect(ws(address, given, "signal"), max_size=None)
    await peer.setLocalDescription(await peer.createOffer())
    await socket.send(json.dumps({"type": "offer", "role": "viewer", "sdp": peer.localDescription.sdp}))
    async for text in socket:
        message = json.loads(text)
        if message["type"] == "answer":
            await peer.setRemoteDescription(RTCSessionDescription(message["sdp"], "answer"))
            return socket
        if message["type"] == "error":
            raise RuntimeError(str(message))
    raise RuntimeError("the signalling socket closed")


def ws(address: str, given: dict[str, Any], what: str) -> str:
    return f"{address.replace('http', 'ws')}{given['urls'][what]}?token={given['token']}"


async def forget(watcher: Watcher) -> None:
    """A viewer of half an hour must not keep what it saw."""
    while True:
        await asyncio.sleep(1)
        watcher.video.clear()
        watcher.audio.clear()


async def soak(address: str, server: psutil.Process, material: Material, minutes: float, count: int) -> Taken:
    taken = Taken()
    async with httpx.AsyncClient(base_url=address, timeout=20) as http:
        body = {"source": {"file": "film.mp4"}, "consent": True}
        given = [(await http.post("/v1/sessions", json=body)).raise_for_status().json() for _ in range(count)]
        peers = [client() for _ in given]
        watchers = [Watcher(peer) for peer in peers]
        held = [await watch(address, each, peer) for each, peer in zip(given, peers, strict=True)]
        voices = [await connect(ws(address, each, "voice"), max_size=None) for each in given]
        beside = [asyncio.create_task(speak(voice, material.chunks())) for voice in voices]
        beside += [asyncio.create_task(forget(watcher)) for watcher in watchers]
        beside += [asyncio.create_task(drain(socket)) for socket in held]
        began = time.monotonic()
        while (seconds := time.monotonic() - began) < minutes * 60:
            await asyncio.sleep(EVERY_S)
            latency = []
            for each in given:
                bearer = {"Authorization": f"Bearer {each['token']}"}
                about = (await http.get(each["urls"]["session"], headers=bearer)).raise_for_status().json()
                latency.append(about["added_latency_ms"]["p50"])
            taken.add(
                seconds,
                memory_mb=memory_mb(server),
                server_mb=own_memory_mb(server),
                threads=threads(server),
                descriptors=descriptors(server),
                latency_ms=float(np.mean(latency)),
                fps=about["fps"],
                cpu_s=cpu_s(server),
            )
            if len(taken.seconds) % 6 == 0:
                print(
                    f"{seconds / 60:5.1f} min",
                    {k: round(v[-1], 1) for k, v in taken.figures.items()},
                    flush=True,
                )
        for task in beside:
            task.cancel()
        await asyncio.gather(*(peer.close() for peer in peers), *(s.close() for s in [*held, *voices]))
    return taken


async def drain(socket: ClientConnection) -> None:
    async for _ in socket:
        pass


def slope(seconds: NDArray[np.float64], values: NDArray[np.float64]) -> dict[str, float]:
    """Growth per hour over means of BLOCK_S after SETTLE_S, with its 95 % interval."""
    kept = seconds >= SETTLE_S
    block = ((seconds[kept] - SETTLE_S) // BLOCK_S).astype(int)
    if len(set(block)) < 3:
        block = np.arange(kept.sum())  # too short a run for blocks: say what can be said
    x = np.array([seconds[kept][block == b].mean() for b in sorted(set(block))]) / 3600
    y = np.array([values[kept][block == b].mean() for b in sorted(set(block))])
    if np.ptp(y) == 0:
        return {"per_hour": 0.0, "low": 0.0, "high": 0.0, "mean": float(y[0])}
    fit = stats.linregress(x, y)
    reach = float(stats.t.ppf(0.975, len(x) - 2) * fit.stderr)
    return {
        "per_hour": float(fit.slope),
        "low": fit.slope - reach,
        "high": fit.slope + reach,
        "mean": float(y.mean()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path)
    parser.add_argument("voice", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--size", default="320x180")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    width, height = (int(side) for side in args.size.split("x"))
    material = load_material(args.clip, args.voice, width, height)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_film(material, folder / "film.mp4")
        with serving(folder / "server.log", RETALK_PRESENTERS_DIR=str(folder)) as server:
            process = psutil.Process(server.process.pid)
            taken = asyncio.run(soak(server.url, process, material, args.minutes, args.sessions))
    seconds = np.array(taken.seconds)
    found: dict[str, Any] = {"minutes": args.minutes, "sessions": args.sessions, "size": args.size}
    for name in ("memory_mb", "server_mb", "latency_ms", "threads", "descriptors"):
        found[name] = slope(seconds, np.array(taken.figures[name]))
        one = found[name]
        verdict = "none" if one["low"] <= 0 <= one["high"] else "GROWS" if one["low"] > 0 else "falls"
        print(
            f"{name:12} mean {one['mean']:8.2f}  slope {one['per_hour']:+8.3f} per hour "
            f"[{one['low']:+.3f}, {one['high']:+.3f}]  {verdict}"
        )
    used = taken.figures["cpu_s"]
    found["cores"] = (used[-1] - used[0]) / (taken.seconds[-1] - taken.seconds[0])
    print(f"cores        {found['cores']:.2f}")
    if args.json:
        args.json.write_text(json.dumps({**found, "samples": {"seconds": taken.seconds, **taken.figures}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
