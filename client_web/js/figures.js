/**
 * The live figures: what the server measures, and what only this browser can know.
 *
 * @typedef {object} BrowserFigures
 * @property {number | null} fps             frames decoded per second
 * @property {number | null} bufferMs        mean time a frame or sample waited in the jitter buffers, the longer of both
 * @property {number | null} videoBufferMs
 * @property {number | null} audioBufferMs
 * @property {number | null} skewMs          audio minus video at playout; positive where the sound is ahead
 * @property {number | null} dropped         frames decoded and never shown, since the start
 * @property {number | null} freezes         since the start
 * @property {number | null} lostPackets     since the start, audio and video
 * @property {number | null} roundTripMs
 * @property {number | null} sentFps         camera frames sent per second
 * @property {string} codec                  of the picture received
 */

/** Reads one peer connection's getStats and turns counters into rates between two readings. */
export class BrowserMeter {
  /** @type {Map<string, {time: number, values: Record<string, number>}>} */
  #before = new Map();

  /** @param {RTCPeerConnection} pc */
  constructor(pc) {
    this.pc = pc;
  }

  /** @returns {Promise<BrowserFigures>} */
  async read() {
    const report = await this.pc.getStats();
    /** @type {Record<string, any>} */
    const found = {};
    report.forEach((item) => {
      if (item.type === "inbound-rtp") found[`in-${item.kind}`] = item;
      else if (item.type === "outbound-rtp") found[`out-${item.kind}`] = item;
      else if (item.type === "candidate-pair" && item.nominated) found.pair = item;
    });
    const video = found["in-video"];
    const audio = found["in-audio"];
    const videoBufferMs = this.#meanDelay("video", video);
    const audioBufferMs = this.#meanDelay("audio", audio);
    const waits = [videoBufferMs, audioBufferMs].filter((wait) => wait !== null);
    const codec = video?.codecId ? report.get(video.codecId)?.mimeType : "";
    return {
      fps: this.#rate("fps", video, "framesDecoded"),
      bufferMs: waits.length ? Math.max(...waits) : null,
      videoBufferMs,
      audioBufferMs,
      skewMs: playoutSkew(audio, video),
      dropped: video?.framesDropped ?? null,
      freezes: video?.freezeCount ?? null,
      lostPackets: video || audio ? (video?.packetsLost ?? 0) + (audio?.packetsLost ?? 0) : null,
      roundTripMs: found.pair?.currentRoundTripTime === undefined ? null : 1000 * found.pair.currentRoundTripTime,
      sentFps: this.#rate("sent", found["out-video"], "framesSent"),
      codec: (codec ?? "").replace("video/", ""),
    };
  }

  /**
   * @param {string} name
   * @param {any} item
   * @param {string} counter
   */
  #rate(name, item, counter) {
    const step = this.#step(name, item, [counter]);
    return step && step.seconds > 0 ? step.values[counter] / step.seconds : null;
  }

  /**
   * @param {string} name
   * @param {any} item
   */
  #meanDelay(name, item) {
    const step = this.#step(name, item, ["jitterBufferDelay", "jitterBufferEmittedCount"]);
    if (!step || step.values.jitterBufferEmittedCount <= 0) return null;
    return (1000 * step.values.jitterBufferDelay) / step.values.jitterBufferEmittedCount;
  }

  /**
   * @param {string} name
   * @param {any} item
   * @param {string[]} counters
   * @returns {{seconds: number, values: Record<string, number>} | null} the growth since the reading before
   */
  #step(name, item, counters) {
    if (!item) return null;
    const values = Object.fromEntries(counters.map((counter) => [counter, item[counter] ?? 0]));
    const before = this.#before.get(name);
    this.#before.set(name, { time: item.timestamp, values });
    if (!before) return null;
    const grown = Object.fromEntries(counters.map((counter) => [counter, values[counter] - before.values[counter]]));
    return { seconds: (item.timestamp - before.time) / 1000, values: grown };
  }
}

/**
 * Audio minus video playout time, in ms. Both estimates tell which instant of the sender's clock is
 * playing now (WebRTC stats, estimatedPlayoutTimestamp), so their difference is the skew at this viewer.
 *
 * @param {any} audio
 * @param {any} video
 */
function playoutSkew(audio, video) {
  const heard = audio?.estimatedPlayoutTimestamp;
  const seen = video?.estimatedPlayoutTimestamp;
  return heard && seen ? heard - seen : null;
}

/** @type {Readonly<Record<string, {word: string, advice: string}>>} */
const FACES = {
  tracked: { word: "Tracked", advice: "" },
  none: { word: "None", advice: "No face found: look at the camera, in the light." },
  small: { word: "Too small", advice: "The face is too small: move closer." },
  profile: { word: "Turned away", advice: "The face is turned away: look at the camera." },
  occluded: { word: "Covered", advice: "Something covers the mouth." },
  edge: { word: "At the edge", advice: "The face is at the edge: move to the middle." },
};

/** @param {string | null | undefined} state */
export function faceWords(state) {
  return FACES[state ?? ""] ?? { word: state ? plain(state) : "–", advice: "" };
}

/** @type {Readonly<Record<string, {word: string, note: string}>>} */
const RUNGS = {
  full: { word: "Full", note: "every stage runs" },
  no_restoration: { word: "High", note: "without face restoration" },
  no_enhancement: { word: "Medium", note: "without enhancement" },
  half_rate: { word: "Low", note: "every second frame dubbed" },
  pass_through: { word: "Source", note: "the source picture goes out" },
};

/** @param {string | null | undefined} rung */
export function rungWords(rung) {
  const key = (rung ?? "").toLowerCase().replaceAll("-", "_");
  return RUNGS[key] ?? { word: rung ? plain(rung) : "–", note: "rung of the ladder" };
}

/** @param {string} name */
export function plain(name) {
  const spaced = name.replaceAll(/[_-]+/g, " ").trim();
  return spaced.charAt(0).toUpperCase() + spaced.slice(1);
}

/**
 * A nested object as rows of `name, value`, for the table of all figures.
 *
 * @param {Record<string, unknown>} object
 * @param {string} [prefix]
 * @returns {Array<[string, string]>}
 */
export function rows(object, prefix = "") {
  return Object.entries(object).flatMap(([name, value]) => {
    const label = prefix ? `${prefix}, ${plain(name).toLowerCase()}` : plain(name);
    if (value === null || value === undefined || value === "" || name === "type") return [];
    if (typeof value === "object") return rows(/** @type {Record<string, unknown>} */ (value), label);
    const text = typeof value === "number" && !Number.isInteger(value) ? value.toFixed(1) : String(value);
    return /** @type {Array<[string, string]>} */ ([[label, text]]);
  });
}
