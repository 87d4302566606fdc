// Runs in the page beside the client: takes down what a person there would see and hear, with the page's clock.
// Everything is read off the elements that the person looks at, nothing from the client's own modules.
(() => {
  const kept = { frames: [], sources: [], audio: [], running: true };
  const [width, height] = [640, 480];

  const follow = (id, seen) => {
    const video = document.getElementById(id);
    const next = (now, info) => {
      if (!kept.running) return;
      seen(video, now, info);
      video.requestVideoFrameCallback(next);
    };
    video.requestVideoFrameCallback(next);
  };

  // Two columns of luma through the squares' middles: drawing whole pictures to read them back would slow the page
  // that is being measured.
  const readNumber = async (video) => {
    const { left, top, cell, bits } = window.__code;
    let frame;
    try {
      frame = new VideoFrame(video, { timestamp: 0 });
    } catch (error) {
      // The stream may end, or another take its place, between a picture and its callback.
      if (error.name === "InvalidStateError") return null;
      throw error;
    }
    try {
      if (frame.codedWidth < width || !/^(I420|NV12)$/.test(frame.format)) return null;
      const rect = { x: left + cell / 2, y: top, width: 2, height: (bits + 1) * cell };
      const planes = new Uint8Array(frame.allocationSize({ rect }));
      const [luma] = await frame.copyTo(planes, { rect });
      const middle = (i) => planes[luma.offset + luma.stride * (i * cell + cell / 2)];
      const on = Array.from({ length: bits + 1 }, (_, i) => (middle(i) > 127 ? 1 : 0));
      const parity = on.pop();
      const ones = on.reduce((a, b) => a + b, 0);
      return parity === 1 - (ones % 2) ? on.reduce((number, bit) => 2 * number + bit, 0) : null;
    } finally {
      frame.close();
    }
  };

  const picture = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  follow("dubbed", (video, now, info) => {
    // The browser may skip a callback for a picture that it did present; its own count does not.
    const [at, presented] = [info.expectedDisplayTime, info.presentedFrames];
    const frame = { at, presented, number: readNumber(video), jpeg: null };
    kept.frames.push(frame);
    if (window.__pictures) {
      picture.drawImage(video, 0, 0, width, height);
      frame.jpeg = picture.canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
    }
  });
  follow("source", (video, now, info) => {
    kept.sources.push({ at: info.expectedDisplayTime, number: readNumber(video) });
  });

  const listen = async () => {
    const track = document.getElementById("dubbed").srcObject.getAudioTracks()[0].clone();
    const reader = new MediaStreamTrackProcessor({ track }).readable.getReader();
    while (kept.running) {
      const { value: data, done } = await reader.read();
      if (done) break;
      const pcm = new Float32Array(data.numberOfFrames);
      data.copyTo(pcm, { planeIndex: 0, format: "f32-planar" });
      let power = 0;
      for (const sample of pcm) power += sample * sample;
      kept.audio.push({
        at: performance.now(),
        place: (data.timestamp + data.duration) / 1000,
        rms: Math.sqrt(power / pcm.length),
      });
      data.close();
    }
    track.stop();
  };
  const waitForSound = () => {
    const stream = document.getElementById("dubbed").srcObject;
    if (stream && stream.getAudioTracks().length) listen();
    else if (kept.running) requestAnimationFrame(waitForSound);
  };
  waitForSound();

  const base64 = async (promise) => {
    const bytes = new Uint8Array(await (await promise).arrayBuffer());
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    return btoa(text);
  };
  window.__capture = {
    async finish() {
      kept.running = false;
      for (const frame of [...kept.frames, ...kept.sources]) frame.number = await frame.number;
      for (const frame of kept.frames) if (frame.jpeg) frame.jpeg = await base64(frame.jpeg);
      return kept;
    },
  };
})();
