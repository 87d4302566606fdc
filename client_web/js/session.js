/**
 * One dubbed session as the browser sees it: local media, the HTTP session, one peer connection, one voice.
 *
 * @typedef {object} Choices
 * @property {"webrtc" | {file: string}} source
 * @property {"microphone" | "pcm"} voice
 * @property {() => Promise<ArrayBuffer>} [loadVoice]  sound file for voice "pcm"
 * @property {number} budgetMs
 * @property {"source" | "rest"} idle
 * @property {boolean} mark
 * @property {string} key
 */

import { createSession, deleteSession, socketUrl } from "./api.js";
import { ClientError, deviceError, serverError } from "./errors.js";
import { BrowserMeter } from "./figures.js";
import { Signal } from "./signal.js";
import { decodeSpeech, Utterance } from "./voice.js";

const CAMERA = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 25, max: 30 } };
const METER_MS = 1000;
const CONNECT_MS = 20_000;
const RETRY_MS = [500, 1000, 2000, 4000, 6000];

/**
 * Events, each a CustomEvent:
 * `state` {state: "starting" | "live" | "reconnecting", text}, `source` {stream}, `dubbed` {stream},
 * `stats` {server}, `browser` {figures}, `voice` {playedMs, totalMs, speaking},
 * `failed` {error}: the session has ended itself and given everything back.
 */
export class Session extends EventTarget {
  #abort = new AbortController();
  #over = false;
  #info = /** @type {import("./api.js").SessionInfo | null} */ (null);
  #pc = /** @type {RTCPeerConnection | null} */ (null);
  #signal = /** @type {Signal | null} */ (null);
  #utterance = /** @type {Utterance | null} */ (null);
  #pcm = /** @type {Int16Array<ArrayBuffer> | null} */ (null);
  #local = new MediaStream();
  #timer = 0;
  #reconnecting = false;

  /** @param {Choices} choices */
  constructor(choices) {
    super();
    this.choices = choices;
  }

  /** Ask for media, create the session, connect, and begin to speak. Never throws: see `failed`. */
  async start() {
    try {
      this.#say("starting", "Getting ready…");
      await this.#openMedia();
      if (this.choices.loadVoice) this.#pcm = await decodeSpeech(await this.choices.loadVoice());
      this.#check();
      this.#say("starting", "Connecting…");
      await this.#connect();
      this.speak();
    } catch (error) {
      this.#fail(error);
    }
  }

  get canSpeak() {
    return this.#pcm !== null;
  }

  get speaking() {
    return this.#utterance !== null;
  }

  /** Speak the file from its beginning, or from a sample on; a voice that still speaks is interrupted. */
  speak(from = 0) {
    if (!this.#pcm || !this.#info || this.#over) return;
    this.#utterance?.interrupt();
    const utterance = new Utterance(socketUrl(this.#info, "voice"), this.#pcm, from);
    this.#utterance = utterance;
    const mine = () => this.#utterance === utterance;
    utterance.addEventListener("progress", (event) => {
      if (mine()) this.#emit("voice", { .../** @type {CustomEvent} */ (event).detail, speaking: true });
    });
    utterance.addEventListener("finished", () => mine() && this.#spoken("finished"));
    utterance.addEventListener("refused", (event) => {
      if (mine()) this.#fail(serverError(/** @type {CustomEvent} */ (event).detail, 0));
    });
    utterance.addEventListener("lost", () => mine() && this.#reconnect());
    this.#emit("voice", { playedMs: utterance.playedMs, totalMs: utterance.totalMs, speaking: true });
  }

  /** Silence the voice at once. */
  interrupt() {
    if (this.#utterance) {
      this.#utterance.interrupt();
      this.#spoken("interrupted");
    } else {
      this.#signal?.send({ type: "interrupt" });
    }
  }

  /** Give everything back. Idempotent; resolves when the server knows. */
  async stop() {
    if (this.#over) return;
    this.#over = true;
    this.#abort.abort();
    this.#disconnect();
    for (const track of this.#local.getTracks()) track.stop();
    if (this.#info) await deleteSession(this.#info);
  }

  /** @param {"finished" | "interrupted"} how */
  #spoken(how) {
    const ended = this.#utterance;
    this.#utterance = null;
    this.#emit("voice", { playedMs: ended?.playedMs ?? 0, totalMs: ended?.totalMs ?? 0, speaking: false, how });
  }

  async #openMedia() {
    const camera = this.choices.source === "webrtc";
    const microphone = this.choices.voice === "microphone";
    if (camera) await this.#openDevice("camera", { video: CAMERA });
    if (microphone) await this.#openDevice("microphone", { audio: { channelCount: 1 } });
    if (camera) this.#emit("source", { stream: new MediaStream(this.#local.getVideoTracks()) });
  }

  /**
   * @param {"camera" | "microphone"} device
   * @param {MediaStreamConstraints} constraints
   */
  async #openDevice(device, constraints) {
    if (!navigator.mediaDevices) throw new ClientError("insecure");
    this.#say("starting", `Asking for the ${device}…`);
    /** @type {MediaStream} */
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia(constraints);
    } catch (error) {
      throw deviceError(error, device);
    }
    for (const track of stream.getTracks()) {
      // A person who pressed Stop while the browser was still asking must not be left with the camera on.
      if (this.#over) track.stop();
      track.addEventListener("ended", () => this.#fail(new ClientError(`${device}-ended`)));
      this.#local.addTrack(track);
    }
    this.#check();
  }

  async #connect() {
    this.#info = await createSession(this.#request(), this.choices.key, this.#abort.signal);
    if (this.#over) {
      await deleteSession(this.#info);
      this.#check();
    }
    const info = this.#info;
    const signal = new Signal(socketUrl(info, "signal"));
    const pc = new RTCPeerConnection({ iceServers: info.ice_servers ?? [], bundlePolicy: "max-bundle" });
    this.#signal = signal;
    this.#pc = pc;
    this.#addMedia(pc);
    this.#receive(pc);
    pc.addEventListener("icecandidate", (event) => {
      if (event.candidate) signal.send({ type: "candidate", candidate: event.candidate.toJSON() });
    });
    signal.addEventListener("message", (event) => {
      this.#heard(/** @type {CustomEvent} */ (event).detail, pc).catch((error) => this.#fail(error));
    });
    const lost = new Promise((_, reject) => {
      signal.addEventListener("lost", () => reject(new ClientError("server-gone", "signalling closed")));
    });
    lost.catch(() => {});
    await Promise.race([signal.opened(), lost]);
    await pc.setLocalDescription();
    signal.send({ type: "offer", role: this.#role(), sdp: pc.localDescription?.sdp });
    await Promise.race([this.#established(pc), lost]);
    this.#check();
    signal.addEventListener("lost", () => this.#reconnect());
    pc.addEventListener("connectionstatechange", () => {
      if (pc === this.#pc && pc.connectionState === "failed") this.#reconnect();
    });
    this.#meter(pc, signal);
    this.#say("live", "Live");
  }

  #role() {
    return this.#local.getTracks().length > 0 ? "duplex" : "viewer";
  }

  /** @returns {import("./api.js").SessionRequest} */
  #request() {
    const { source, budgetMs, idle, mark } = this.choices;
    return { source, consent: true, latency_budget_ms: budgetMs, idle, mark };
  }

  /** @param {RTCPeerConnection} pc */
  #addMedia(pc) {
    for (const kind of ["video", "audio"]) {
      const track = this.#local.getTracks().find((each) => each.kind === kind);
      if (track) pc.addTransceiver(track, { direction: "sendrecv", streams: [this.#local] });
      else pc.addTransceiver(kind, { direction: "recvonly" });
    }
  }

  /** @param {RTCPeerConnection} pc */
  #receive(pc) {
    const stream = new MediaStream();
    pc.addEventListener("track", (event) => {
      // The server has paired picture and sound already; a browser's own buffering only adds latency.
      const receiver = /** @type {RTCRtpReceiver & {jitterBufferTarget?: number, playoutDelayHint?: number}} */ (event.receiver);
      if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
      if ("playoutDelayHint" in receiver) receiver.playoutDelayHint = 0;
      stream.addTrack(event.track);
      this.#emit("dubbed", { stream });
    });
  }

  /**
   * @param {any} message
   * @param {RTCPeerConnection} pc
   */
  async #heard(message, pc) {
    if (pc !== this.#pc || this.#over) return;
    if (message.type === "answer") await pc.setRemoteDescription({ type: "answer", sdp: message.sdp });
    else if (message.type === "candidate" && message.candidate) await pc.addIceCandidate(message.candidate).catch(() => {});
    else if (message.type === "stats") this.#emit("stats", { server: message });
    else if (message.type === "error") this.#fail(serverError(message, 0));
    else if (message.type === "bye") this.#fail(new ClientError("session-gone", message.reason));
  }

  /** @param {RTCPeerConnection} pc */
  #established(pc) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new ClientError("connection-failed", "no connection in time")), CONNECT_MS);
      pc.addEventListener("connectionstatechange", () => {
        if (pc.connectionState === "connected") resolve(undefined);
        else if (pc.connectionState === "failed") reject(new ClientError("connection-failed", "ICE or DTLS failed"));
        else return;
        clearTimeout(timer);
      });
      this.#abort.signal.addEventListener("abort", () => {
        clearTimeout(timer);
        reject(new DOMException("stopped", "AbortError"));
      });
    });
  }

  /**
   * @param {RTCPeerConnection} pc
   * @param {Signal} signal
   */
  #meter(pc, signal) {
    const meter = new BrowserMeter(pc);
    this.#timer = window.setInterval(async () => {
      const figures = await meter.read().catch(() => null);
      if (!figures || pc !== this.#pc) return;
      this.#emit("browser", { figures });
      signal.send({ type: "stats", ...figures });
    }, METER_MS);
  }

  async #reconnect() {
    if (this.#over || this.#reconnecting) return;
    this.#reconnecting = true;
    const from = this.#utterance?.position ?? null;
    this.#utterance = null;
    this.#disconnect();
    try {
      await this.#retry();
      if (from !== null) this.speak(from);
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#reconnecting = false;
    }
  }

  async #retry() {
    for (const [attempt, wait] of RETRY_MS.entries()) {
      this.#say("reconnecting", `Connection lost. Trying again (${attempt + 1} of ${RETRY_MS.length})…`);
      await new Promise((resolve) => setTimeout(resolve, wait));
      this.#check();
      if (this.#info) await deleteSession(this.#info);
      try {
        return await this.#connect();
      } catch (error) {
        this.#disconnect();
        const last = attempt === RETRY_MS.length - 1;
        if (last || !(error instanceof ClientError) || error.code !== "server-gone") throw error;
      }
    }
  }

  /** Closes peer connection, sockets and timer; local media stays. */
  #disconnect() {
    clearInterval(this.#timer);
    this.#utterance?.close();
    this.#utterance = null;
    this.#signal?.close();
    this.#signal = null;
    this.#pc?.close();
    this.#pc = null;
  }

  #check() {
    if (this.#over) throw new DOMException("stopped", "AbortError");
  }

  /** @param {unknown} error */
  #fail(error) {
    if (this.#over) return;
    this.stop();
    this.#emit("failed", { error });
  }

  /**
   * @param {"starting" | "live" | "reconnecting"} state
   * @param {string} text
   */
  #say(state, text) {
    this.#emit("state", { state, text });
  }

  /**
   * @param {string} type
   * @param {object} detail
   */
  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
