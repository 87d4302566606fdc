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

  const canvasOf = (w, h) => new OffscreenCanvas(w, h).getContext("2d", { willReadFrequently: true });

  // Only the squares' middles are drawn: reading whole pictures back would slow the page that is being measured.
  const numberReader = () => {
    const { left, top, cell, bits } = window.__code;
    const strip = canvasOf(1, bits + 1);
    return (video) => {
      strip.imageSmoothingEnabled = false;
      const [sx, sy] = [video.videoWidth / width, video.videoHeight / height];
      strip.drawImage(video, (left + cell / 2) * sx, top * sy, 2 * sx, (bits + 1) * cell * sy, 0, 0, 1, bits + 1);
      const shades = strip.getImageData(0, 0, 1, bits + 1).data;
      const on = Array.from({ length: bits + 1 }, (_, i) => (shades[4 * i + 1] > 127 ? 1 : 0));
      const parity = on.pop();
      const ones = on.reduce((a, b) => a + b, 0);
      return parity === 1 - (ones % 2) ? on.reduce((number, bit) => 2 * number + bit, 0) : null;
    };
  };

  const dubbedNumber = numberReader();
  const picture = canvasOf(width, height);
  follow("dubbed", (video, now, info) => {
    const frame = { at: info.expectedDisplayTime, number: dubbedNumber(video), jpeg: null };
    kept.frames.push(frame);
    if (window.__pictures) {
      picture.drawImage(video, 0, 0, width, height);
      frame.jpeg = picture.canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
    }
  });
  const sourceNumber = numberReader();
  follow("source", (video, now, info) => {
    kept.sources.push({ at: info.expectedDisplayTime, number: sourceNumber(video) });
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
      for (const frame of kept.frames) if (frame.jpeg) frame.jpeg = await base64(frame.jpeg);
      return kept;
    },
  };
})();
