/**
 * Speech as PCM over the voice socket: decoded once in the browser, sent only as fast as the server gives credit.
 */

import { ClientError } from "./errors.js";

/** Samples per second on the wire: mono, 16 bits, little end first. */
export const RATE = 24000;
const CHUNK_MS = 40;
/** How long the server may take over what it never reports. */
const UNREPORTED_MS = 1000;
const LONGEST_S = 30 * 60;
const LARGEST_BYTES = 256 * 1024 * 1024;

/**
 * Decodes a sound file of any rate and channel count to mono at RATE.
 *
 * @param {ArrayBuffer} bytes
 * @returns {Promise<Int16Array<ArrayBuffer>>}
 */
export async function decodeSpeech(bytes) {
  if (bytes.byteLength > LARGEST_BYTES) throw new ClientError("file-long");
  /** @type {AudioBuffer} */
  let decoded;
  try {
    // An OfflineAudioContext decodes straight to its own rate, with the browser's own resampler.
    decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes);
  } catch (error) {
    throw new ClientError("file-unreadable", String(error), { cause: error });
  }
  if (decoded.length === 0) throw new ClientError("file-empty");
  if (decoded.duration > LONGEST_S) throw new ClientError("file-long");
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, index) => decoded.getChannelData(index));
  const pcm = new Int16Array(decoded.length);
  for (let i = 0; i < pcm.length; i += 1) {
    let sum = 0;
    for (const channel of channels) sum += channel[i];
    pcm[i] = Math.round(Math.max(-1, Math.min(1, sum / channels.length)) * 32767);
  }
  return pcm;
}

/** @param {AbortSignal} [signal] */
export async function fetchSample(signal) {
  const response = await fetch("sample/speech.wav", { signal }).catch((error) => {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ClientError("server-gone", String(error), { cause: error });
  });
  if (!response.ok) throw new ClientError("sample-missing", `HTTP ${response.status}`);
  return response.arrayBuffer();
}

/**
 * One utterance on one voice socket, sent only as fast as the server gives credit.
 *
 * Events: `progress` (detail: {playedMs, totalMs}), `finished` when the last sample was heard,
 * `refused` (detail: what the server said), `replaced` when another speaker took the voice over, `interrupted` when another participant
 * silenced it, `lost` when the socket closes before either.
 */
export class Utterance extends EventTarget {
  #creditMs = 0;
  #sent = 0;
  #timer = 0;
  #ended = false;
  #over = false;

  /**
   * @param {string} url
   * @param {Int16Array<ArrayBuffer>} pcm  mono at RATE
   * @param {number} [from]  sample to begin with, so that a lost connection need not begin anew
   */
  constructor(url, pcm, from = 0) {
    super();
    this.pcm = pcm;
    this.playedMs = (1000 * from) / RATE;
    this.#sent = from;
    this.socket = new WebSocket(url);
    this.socket.addEventListener("open", () => {
      this.#send({ type: "start", rate: RATE, channels: 1, format: "s16le" });
    });
    this.socket.addEventListener("message", (event) => this.#received(event));
    this.socket.addEventListener("close", (event) => {
      if (!this.#over) this.#finish(event.reason === "replaced" ? "replaced" : "lost");
    });
  }

  get totalMs() {
    return (1000 * this.pcm.length) / RATE;
  }

  /** Where speech would go on after a lost connection, as a sample. */
  get position() {
    return Math.min(this.pcm.length, Math.round((this.playedMs * RATE) / 1000));
  }

  /** Silences what was sent and sends no more. */
  interrupt() {
    if (this.#over) return;
    this.#send({ type: "interrupt" });
    this.close();
  }

  close() {
    this.#over = true;
    clearTimeout(this.#timer);
    this.socket.close(1000);
  }

  /** @param {Record<string, unknown>} message */
  #send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  /** @param {"finished" | "interrupted" | "lost" | "replaced"} event */
  #finish(event) {
    this.close();
    this.dispatchEvent(new Event(event));
  }

  /** @param {MessageEvent} event */
  #received(event) {
    if (this.#over || typeof event.data !== "string") return;
    const message = JSON.parse(event.data);
    if (message.type === "credit") {
      this.#creditMs += message.ms;
      this.#pump();
    } else if (message.type === "playhead") {
      this.#heard(message.buffered_ms);
    } else if (message.type === "interrupted") {
      this.#finish("interrupted");
    } else if (message.type === "error") {
      this.close();
      this.dispatchEvent(new CustomEvent("refused", { detail: message }));
    }
  }

  #pump() {
    const chunk = (RATE * CHUNK_MS) / 1000;
    while (this.#sent < this.pcm.length && this.#creditMs >= CHUNK_MS) {
      const end = Math.min(this.#sent + chunk, this.pcm.length);
      this.socket.send(this.pcm.subarray(this.#sent, end));
      this.#creditMs -= CHUNK_MS;
      this.#sent = end;
    }
    if (this.#ended || this.#sent < this.pcm.length) return;
    this.#ended = true;
    this.#send({ type: "end" });
    // Of what is shorter than the server's interval it may report nothing at all.
    this.#finishIn(this.totalMs - this.playedMs + UNREPORTED_MS);
  }

  /** @param {number} bufferedMs  what the server holds and has not played */
  #heard(bufferedMs) {
    const sentMs = (1000 * this.#sent) / RATE;
    this.playedMs = Math.max(this.playedMs, Math.min(this.totalMs, sentMs - bufferedMs));
    this.dispatchEvent(new CustomEvent("progress", { detail: { playedMs: this.playedMs, totalMs: this.totalMs } }));
    if (this.#sent < this.pcm.length) return;
    // The server reports only while it holds something, so the last report is not always the empty one.
    this.#finishIn(bufferedMs > 0 ? bufferedMs + 300 : 0);
  }

  /** @param {number} ms  from now, unless a later report tells better */
  #finishIn(ms) {
    clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => {
      if (this.#over) return;
      this.playedMs = this.totalMs;
      this.#finish("finished");
    }, ms);
  }
}
