/** One peer connection and its signalling socket: local tracks up, the dubbed pair down. */

import { socketUrl } from "./api.js";
import { ClientError, serverError } from "./errors.js";
import { BrowserMeter } from "./figures.js";
import { withStartBitrate } from "./sdp.js";
import { Signal } from "./signal.js";
import { LipSync } from "./sync.js";

const METER_MS = 1000;
const CONNECT_MS = 20_000;

/**
 * Events, each a CustomEvent: `dubbed` {stream}, `stats` {server}, `browser` {figures},
 * `refused` {error}: an error message of the server's, `dismissed` {reason}: the server has ended this peer,
 * `lost`: the way to the server broke after it was connected.
 */
export class Peer extends EventTarget {
  #timer = 0;
  #closed = false;
  #connected = false;
  #sync = /** @type {LipSync | null} */ (null);

  /**
   * @param {import("./api.js").SessionInfo} info
   * @param {MediaStream} local  what to send: a camera, a microphone, both or nothing
   */
  constructor(info, local) {
    super();
    this.role = local.getTracks().length > 0 ? "duplex" : "viewer";
    this.signal = new Signal(socketUrl(info, "signal"));
    // One transport for all: with the default policy some of a second audio track's packets never arrive.
    this.pc = new RTCPeerConnection({ iceServers: info.ice_servers ?? [], bundlePolicy: "max-bundle" });
    this.#addMedia(local);
    this.#receive();
    this.pc.addEventListener("icecandidate", (event) => {
      this.signal.send({ type: "candidate", role: this.role, candidate: event.candidate?.toJSON() ?? null });
    });
    this.signal.addEventListener("message", (event) => this.#heard(/** @type {CustomEvent} */ (event).detail));
    this.signal.addEventListener("lost", () => this.#broke());
    this.pc.addEventListener("connectionstatechange", () => {
      if (this.pc.connectionState === "failed") this.#broke();
    });
  }

  /**
   * Offer, and wait for picture and sound to have a way through.
   *
   * @param {AbortSignal} abort
   * @throws {ClientError} "server-gone", "connection-failed" or what the server refused with
   */
  async connect(abort) {
    /** @type {(error: unknown) => void} */
    let giveUp = () => {};
    const failure = new Promise((_, reject) => {
      giveUp = reject;
    });
    failure.catch(() => {});
    const lost = () => giveUp(new ClientError("server-gone", "signalling closed"));
    const refused = (/** @type {Event} */ event) => giveUp(/** @type {CustomEvent} */ (event).detail.error);
    const stopped = () => giveUp(new DOMException("stopped", "AbortError"));
    const timer = setTimeout(() => giveUp(new ClientError("connection-failed", "no connection in time")), CONNECT_MS);
    this.signal.addEventListener("lost", lost);
    this.addEventListener("refused", refused);
    abort.addEventListener("abort", stopped);
    try {
      await Promise.race([this.signal.opened(), failure]);
      await this.pc.setLocalDescription();
      this.signal.send({ type: "offer", role: this.role, sdp: this.pc.localDescription?.sdp });
      await Promise.race([this.#established(), failure]);
    } finally {
      clearTimeout(timer);
      this.signal.removeEventListener("lost", lost);
      this.removeEventListener("refused", refused);
      abort.removeEventListener("abort", stopped);
    }
    this.#connected = true;
    this.#sync = new LipSync(this.pc);
    this.#measure();
  }

  interruptMicrophone() {
    this.signal.send({ type: "interrupt" });
  }

  close() {
    this.#closed = true;
    clearInterval(this.#timer);
    this.#sync?.close();
    this.signal.close();
    this.pc.close();
  }

  /** @param {MediaStream} local */
  #addMedia(local) {
    for (const kind of ["video", "audio"]) {
      const track = local.getTracks().find((each) => each.kind === kind);
      if (track) this.pc.addTransceiver(track, { direction: "sendrecv", streams: [local] });
      else this.pc.addTransceiver(kind, { direction: "recvonly" });
    }
  }

  #receive() {
    const stream = new MediaStream();
    this.pc.addEventListener("track", (event) => {
      // The server has paired picture and sound already; a browser's own buffering only adds latency.
      const receiver = /** @type {RTCRtpReceiver & {jitterBufferTarget?: number, playoutDelayHint?: number}} */ (event.receiver);
      if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
      if ("playoutDelayHint" in receiver) receiver.playoutDelayHint = 0;
      stream.addTrack(event.track);
      this.#emit("dubbed", { stream });
    });
  }

  /** @param {any} message */
  async #heard(message) {
    if (this.#closed) return;
    if (message.type === "answer") {
      try {
        await this.pc.setRemoteDescription({ type: "answer", sdp: withStartBitrate(message.sdp) });
      } catch (error) {
        this.#emit("refused", { error: new ClientError("connection-failed", String(error), { cause: error }) });
      }
    } else if (message.type === "stats") this.#emit("stats", { server: message });
    else if (message.type === "error") this.#emit("refused", { error: serverError(message, 0) });
    else if (message.type === "bye") this.#emit("dismissed", { reason: message.reason });
  }

  #established() {
    return new Promise((resolve, reject) => {
      this.pc.addEventListener("connectionstatechange", () => {
        if (this.pc.connectionState === "connected") resolve(undefined);
        else if (this.pc.connectionState === "failed") reject(new ClientError("connection-failed", "ICE or DTLS failed"));
      });
    });
  }

  #measure() {
    const meter = new BrowserMeter(this.pc);
    this.#timer = window.setInterval(async () => {
      const figures = await meter.read().catch(() => null);
      if (!figures || this.#closed) return;
      this.#emit("browser", { figures });
      this.signal.send({ type: "stats", role: this.role, ...browserReport(figures) });
    }, METER_MS);
  }

  #broke() {
    if (this.#connected && !this.#closed) this.#emit("lost", {});
  }

  /**
   * @param {string} type
   * @param {object} detail
   */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/**
 * The numbers among the figures, under the names that the server knows.
 *
 * @param {import("./figures.js").BrowserFigures} figures
 * @returns {Record<string, number>}
 */
function browserReport(figures) {
  const named = {
    fps: figures.fps,
    skew_ms: figures.skewMs,
    freezes: figures.freezes,
    dropped: figures.dropped,
    lost_packets: figures.lostPackets,
    round_trip_ms: figures.roundTripMs,
    buffer_ms: figures.bufferMs,
  };
  /** @type {Record<string, number>} */
  const numbers = {};
  for (const [name, value] of Object.entries(named)) if (Number.isFinite(value)) numbers[name] = Number(value);
  return numbers;
}
