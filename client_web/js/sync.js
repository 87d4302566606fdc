/**
 * Shows the picture when its sound is heard.
 *
 * The server sends both at one instant, so they are together where both wait equally long in the browser. The sound's
 * buffer follows the network by itself; a browser lets the picture follow the sound too, but takes ten seconds for
 * 100 ms, and when the sound's buffer has shrunk again by then, the mouth trails the voice. This does it at once.
 */

const STEP_MS = 250;
/** What a picture takes from its buffer to the eye beyond what sound takes to the ear: decoding and drawing. */
const DRAWING_MS = 10;
const LONGEST_MS = 500;

export class LipSync {
  #timer = 0;
  /** @type {{delay: number, count: number} | null} */
  #before = null;

  /** @param {RTCPeerConnection} pc */
  constructor(pc) {
    this.pc = pc;
    this.#timer = window.setInterval(() => this.#step().catch(() => {}), STEP_MS);
  }

  close() {
    clearInterval(this.#timer);
  }

  async #step() {
    const wait = await this.#soundWaits();
    const video = this.#receiver("video");
    if (wait === null || !video || !("jitterBufferTarget" in video)) return;
    video.jitterBufferTarget = Math.min(LONGEST_MS, Math.max(0, Math.round(wait - DRAWING_MS)));
  }

  /** @returns {Promise<number | null>} mean time in ms that the last sounds waited in their buffer */
  async #soundWaits() {
    const report = await this.#receiver("audio")?.getStats();
    /** @type {any} */
    let sound = null;
    report?.forEach((item) => {
      if (item.type === "inbound-rtp") sound = item;
    });
    if (!sound) return null;
    const now = { delay: sound.jitterBufferDelay ?? 0, count: sound.jitterBufferEmittedCount ?? 0 };
    const before = this.#before;
    this.#before = now;
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
