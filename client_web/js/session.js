/**
 * One dubbed session as the browser sees it: local media, the HTTP session, one peer connection, one voice.
 *
 * @typedef {"live" | "aligned"} Policy
 *
 * @typedef {object} Choices
 * @property {"webrtc" | {file: string}} source
 * @property {"microphone" | "pcm"} voice
 * @property {() => Promise<ArrayBuffer>} [loadVoice]  sound file for voice "pcm"
 * @property {Policy} policy
 * @property {number} budgetMs  of a live session
 * @property {number} holdMs    of an aligned session
 * @property {"source" | "rest"} idle
 * @property {boolean} mark
 * @property {string} key
 */

import { createSession, deleteSession, socketUrl } from "./api.js";
import { ClientError, deviceError, serverError } from "./errors.js";
import { Peer } from "./peer.js";
import { decodeSpeech, Utterance } from "./voice.js";

const CAMERA = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 25, max: 30 } };
/** Three quarters of a minute: a server on two slow cores takes half of one to load its engine again. */
const RETRY_MS = [500, 1000, 2000, 4000, 6000, 8000, 8000, 8000, 8000];
/** What a server that is just restarting answers with. */
const PASSING = new Set(["server-gone", "connection-failed", "loading"]);

/**
 * Events, each a CustomEvent:
 * `state` {state: "starting" | "live" | "reconnecting", text}, `source` {stream}, `dubbed` {stream},
 * `poster` {url}: a still of a source that the browser does not see, `stats` {server}, `browser` {figures}, `voice` {playedMs, totalMs, speaking, how},
 * `warning` {error}: something was refused and the session goes on,
 * `failed` {error}: the session has ended itself and given everything back.
 */
export class Session extends EventTarget {
  #abort = new AbortController();
  #over = false;
  #info = /** @type {import("./api.js").SessionInfo | null} */ (null);
  #peer = /** @type {Peer | null} */ (null);
  #utterance = /** @type {Utterance | null} */ (null);
  #pcm = /** @type {Int16Array<ArrayBuffer> | null} */ (null);
  #local = new MediaStream();
  #reconnecting = false;
  #refusal = /** @type {ClientError | null} */ (null);

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
    utterance.addEventListener("interrupted", () => mine() && this.#spoken("interrupted"));
    utterance.addEventListener("replaced", () => mine() && this.#spoken("replaced"));
    utterance.addEventListener("refused", (event) => {
      if (!mine()) return;
      this.#spoken("refused");
      this.#emit("warning", { error: serverError(/** @type {CustomEvent} */ (event).detail, 0) });
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
      this.#peer?.interruptMicrophone();
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

  /** @param {"finished" | "interrupted" | "refused" | "replaced"} how */
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
    if (this.#info.urls?.poster) this.#emit("poster", { url: this.#info.urls.poster });
    const peer = new Peer(this.#info, this.#local);
    this.#peer = peer;
    for (const passed of ["dubbed", "stats", "browser"]) {
      peer.addEventListener(passed, (event) => this.#emit(passed, /** @type {CustomEvent} */ (event).detail));
    }
    peer.addEventListener("dismissed", (event) => this.#dismissed(/** @type {CustomEvent} */ (event).detail.reason));
    await peer.connect(this.#abort.signal);
    this.#check();
    peer.addEventListener("lost", () => this.#reconnect());
    // Once live, a refusal costs no more than what was refused, unless the server dismisses the peer for it.
    peer.addEventListener("refused", (event) => {
      this.#refusal = /** @type {CustomEvent} */ (event).detail.error;
      this.#emit("warning", { error: this.#refusal });
    });
    this.#say("live", "Live");
  }

  /** @returns {import("./api.js").SessionRequest} */
  #request() {
    const { source, policy, budgetMs, holdMs, idle, mark } = this.choices;
    const late = policy === "aligned" ? { hold_ms: holdMs } : { latency_budget_ms: budgetMs };
    return { source, consent: true, policy, ...late, idle, mark };
  }

  /** @param {string} reason */
  #dismissed(reason) {
    if (reason === "vanished" || reason === "timeout" || reason === "failed") this.#reconnect();
    else if (reason === "refused") this.#fail(this.#refusal ?? new ClientError("session-gone"));
    else if (reason === "replaced") this.#fail(new ClientError("replaced"));
    else if (reason !== "closed") this.#fail(new ClientError("session-gone"));
  }

  async #reconnect() {
    if (this.#over || this.#reconnecting) return;
    this.#reconnecting = true;
    const from = this.#utterance?.position ?? null;
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
        if (last || !(error instanceof ClientError) || !PASSING.has(error.code)) throw error;
      }
    }
  }

  /** Closes peer connection and sockets; local media stays. */
  #disconnect() {
    this.#utterance?.close();
    this.#utterance = null;
    this.#peer?.close();
    this.#peer = null;
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
