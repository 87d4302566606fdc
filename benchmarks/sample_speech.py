"""Make client_web/sample/speech.wav, the sample voice of the demo, with espeak-ng: `make sample-speech`."""

from __future__ import annotations

import io
import math
import subprocess
import wave
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

RATE = 24_000
PEAK = 0.7
TARGET = Path(__file__).resolve().parent.parent / "client_web" / "sample" / "speech.wav"
TEXT = (
    "Hello, and welcome. This voice comes from a synthesiser, and retalk moves the lips to match it. "
    "Now choose a camera, and a voice of your own."
)


def main() -> None:
    spoken = subprocess.run(
        ["espeak-ng", "-v", "en-us+f2", "-s", "160", "-p", "45", "--stdout", TEXT],
        capture_output=True,
        check=True,
    ).stdout
    with wave.open(io.BytesIO(spoken)) as source:
        rate = source.getframerate()
        # espeak-ng writes to a pipe and so cannot know the length: the header lies, the bytes do not.
        pcm = source.readframes(len(spoken))
    voice = np.frombuffer(pcm, dtype="<i2").astype(np.float64)
    common = math.gcd(RATE, rate)
    voice = resample_poly(voice, RATE // common, rate // common)
    loud = np.flatnonzero(np.abs(voice) > 0.01 * np.abs(voice).max())
    voice = voice[loud[0] : loud[-1]] * (PEAK * 32767 / np.abs(voice).max())
    edge = np.zeros(RATE // 5)
    samples = np.concatenate((edge, voice, edge)).astype("<i2")
    with wave.open(str(TARGET), "wb") as target:
        target.setnchannels(1)
        target.setsampwidth(2)
        target.setframerate(RATE)
        target.writeframes(samples.tobytes())
    print(f"{TARGET.name}: {len(samples) / RATE:.2f} s at {RATE} Hz")


if __name__ == "__main__":
    main()
