/**
 * Shows the picture when its sound is heard.
 *
 * The server sends both at one instant, so they are together where both wait equally long in the browser. The sound's
 * buffer follows the network by itself; a browser lets the picture follow the sound too, but takes ten seconds for
 * 100 ms, and when the sound's buffer has shrunk again by then, the mouth trails the voice. This does it at once. And
 * where a picture cannot be had as early as its sound, the sound waits for it.
 */

const STEP_MS = 250;
/** What a picture takes from its buffer to the eye beyond what sound takes to the ear: decoding and drawing. */
const DRAWING_MS = 35;
const LONGEST_MS = 500;
/** By how much the picture may trail before the sound waits, and by how much a step lets the sound wait less. */
const TRAILING_MS = 4;
const EASING_MS = 1;

/** @typedef {{delay: number, count: number}} Waited */

export class LipSync {
  #timer = 0;
  /** @type {Map<string, Waited>} */
  #before = new Map();
  #soundTarget = 0;

  /** @param {RTCPeerConnection} pc */
  constructor(pc) {
    this.pc = pc;
    this.#timer = window.setInterval(() => this.#step().catch(() => {}), STEP_MS);
  }

  close() {
    clearInterval(this.#timer);
  }

  async #step() {
    const [sound, picture] = [await this.#waited("audio"), await this.#waited("video")];
    if (sound === null) return;
    this.#setTarget("video", sound - DRAWING_MS);
    if (picture === null) return;
    const ready = picture + DRAWING_MS;
    this.#soundTarget = ready - sound > TRAILING_MS ? ready : Math.max(0, this.#soundTarget - EASING_MS);
    this.#setTarget("audio", this.#soundTarget);
  }

  /**
   * @param {string} kind
   * @param {number} wait in ms
   */
  #setTarget(kind, wait) {
    const receiver = this.#receiver(kind);
    if (!receiver || !("jitterBufferTarget" in receiver)) return;
    receiver.jitterBufferTarget = Math.min(LONGEST_MS, Math.max(0, Math.round(wait)));
  }

  /**
   * @param {string} kind
   * @returns {Promise<number | null>} mean time in ms that the last sounds or pictures waited in their buffer
   */
  async #waited(kind) {
    const report = await this.#receiver(kind)?.getStats();
    /** @type {any} */
    let found = null;
    report?.forEach((item) => {
      if (item.type === "inbound-rtp") found = item;
    });
    if (!found) return null;
    const now = { delay: found.jitterBufferDelay ?? 0, count: found.jitterBufferEmittedCount ?? 0 };
    const before = this.#before.get(kind);
    this.#before.set(kind, now);
    if (!before || now.count <= before.count) return null;
    return (1000 * (now.delay - before.delay)) / (now.count - before.count);
  }

  /**
   * @param {string} kind
   * @returns {(RTCRtpReceiver & {jitterBufferTarget?: number | null}) | undefined}
   */
  #receiver(kind) {
    return this.pc.getReceivers().find((each) => each.track.kind === kind && each.track.readyState === "live");
  }
}
