// Joins a session as a viewer and takes down, on the page's clock, the square's brightness in every picture that is shown
// and the loudness of every 10 ms that are heard.
async ({ signal, codec, sync }) => {
  const { LipSync } = sync ? await import("/js/sync.js") : {};
  const kept = { frames: [], audio: [], running: true };
  const pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
  const video = document.createElement("video");
  Object.assign(video, { autoplay: true, playsInline: true, width: 320 });
  document.body.append(video);
  const stream = new MediaStream();
  const capabilities = RTCRtpReceiver.getCapabilities("video").codecs;
  const wanted = capabilities.filter((each) => each.mimeType === `video/${codec}` || each.mimeType === "video/rtx");
  pc.addTransceiver("video", { direction: "recvonly" }).setCodecPreferences(wanted);
  pc.addTransceiver("audio", { direction: "recvonly" });

  const look = async (frame) => {
    const side = 16;
    const mean = async (x) => {
      const rect = { x: x & ~1, y: 16, width: side, height: side };
      const planes = new Uint8Array(frame.allocationSize({ rect }));
      const [luma] = await frame.copyTo(planes, { rect });
      let sum = 0;
      for (let y = 0; y < side; y += 1) for (let k = 0; k < side; k += 1) sum += planes[luma.offset + y * luma.stride + k];
      return sum / (side * side);
    };
    const pair = [await mean(16), await mean(64)];
    frame.close();
    return pair;
  };
  const shown = (now, info) => {
    if (!kept.running) return;
    video.requestVideoFrameCallback(shown);
    try {
      kept.frames.push({ at: info.expectedDisplayTime, luma: look(new VideoFrame(video, { timestamp: 0 })) });
    } catch {
      // The element may not have its first picture yet, though it says that it shows it.
    }
  };
  const listen = async (track) => {
    const reader = new MediaStreamTrackProcessor({ track: track.clone() }).readable.getReader();
    while (kept.running) {
      const { value: data, done } = await reader.read();
      if (done) break;
      const pcm = new Float32Array(data.numberOfFrames);
      data.copyTo(pcm, { planeIndex: 0, format: "f32-planar" });
      const power = pcm.reduce((sum, sample) => sum + sample * sample, 0);
      const place = (data.timestamp + data.duration) / 1000;
      kept.audio.push({ at: performance.now(), place, rms: Math.sqrt(power / pcm.length) });
      data.close();
    }
  };
  pc.addEventListener("track", (event) => {
    if ("jitterBufferTarget" in event.receiver) event.receiver.jitterBufferTarget = 0;
    stream.addTrack(event.track);
    video.srcObject = stream;
    if (event.track.kind === "audio") listen(event.track);
    else video.requestVideoFrameCallback(shown);
  });

  const socket = new WebSocket(signal);
  await new Promise((resolve) => socket.addEventListener("open", resolve));
  pc.addEventListener("icecandidate", ({ candidate }) => {
    socket.send(JSON.stringify({ type: "candidate", role: "viewer", candidate: candidate?.toJSON() ?? null }));
  });
  const connected = new Promise((resolve, reject) => {
    pc.addEventListener("connectionstatechange", () => pc.connectionState === "connected" && resolve());
    socket.addEventListener("message", async ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "answer") await pc.setRemoteDescription({ type: "answer", sdp: message.sdp });
      if (message.type === "error") reject(new Error(data));
    });
  });
  await pc.setLocalDescription();
  socket.send(JSON.stringify({ type: "offer", role: "viewer", sdp: pc.localDescription.sdp }));
  await connected;
  if (LipSync) new LipSync(pc);
  window.__begin = () => Object.assign(kept, { frames: [], audio: [] }) && true;
  window.__finish = async () => {
    kept.running = false;
    for (const frame of kept.frames) frame.luma = await frame.luma;
    const report = await pc.getStats();
    let [used, received] = ["", {}];
    report.forEach((item) => {
      if (item.type !== "inbound-rtp" || item.kind !== "video") return;
      received = item;
      if (item.codecId) used = report.get(item.codecId).mimeType;
    });
    const { readyState, paused, videoWidth, currentTime } = video;
    return { frames: kept.frames, audio: kept.audio, codec: used, received, shown: { readyState, paused, videoWidth, currentTime } };
  };
  return true;
}
