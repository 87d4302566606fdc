/** The live figures on the page: tiles, the line of the last minute, and the table of everything. */

import { element, html } from "./dom.js";
import { faceWords, rows, rungWords } from "./figures.js";

/** A minute of the server's statistics, which come twice a second. */
const SPARK_POINTS = 120;
/** ITU-R BT.1359: people begin to notice sound that is early by 45 ms or late by 125 ms. */
const SKEW_EARLY_MS = 45;
const SKEW_LATE_MS = 125;
/** A held picture leaves at its time, give or take a frame. */
const FRAME_MS = 40;

export class Board {
  #latencies = /** @type {number[]} */ ([]);
  #server = /** @type {Record<string, any>} */ ({});
  #browser = /** @type {Partial<import("./figures.js").BrowserFigures>} */ ({});

  /** How late the session's picture may be, or is held to be; 0 before there is a session. */
  #limitMs = 0;
  #held = false;

  /**
   * @param {number} limitMs
   * @param {boolean} held  whether the picture is meant to be that late
   */
  showLimit(limitMs, held) {
    this.#limitMs = limitMs;
    this.#held = held;
  }

  clear() {
    this.#latencies = [];
    this.#server = {};
    this.#browser = {};
    this.#draw();
  }

  /** @param {Record<string, any>} stats */
  showServer(stats) {
    this.#server = stats;
    this.#draw();
  }

  /** @param {import("./figures.js").BrowserFigures} figures */
  showBrowser(figures) {
    this.#browser = figures;
    this.#draw();
  }

  #draw() {
    const server = this.#server;
    const browser = this.#browser;
    const latency = server.added_latency_ms?.p50 ?? null;
    const p95 = server.added_latency_ms?.p95 ?? null;
    if (latency !== null) this.#latencies = [...this.#latencies, latency].slice(-SPARK_POINTS);
    const worst = this.#limitMs + (this.#held ? FRAME_MS : 0);
    figure("latency", whole(latency), this.#limitMs > 0 && latency > worst);
    const limit = this.#limitMs ? `${this.#held ? "held for" : "limit"} ${this.#limitMs} ms` : "from arrival to release";
    html("sub-latency").textContent = p95 === null ? limit : `95 % within ${whole(p95)} ms, ${limit}`;
    this.#drawSpark();
    const skew = browser.skewMs ?? server.skew_ms?.p50 ?? server.skew_ms ?? null;
    figure("skew", signed(skew), skew !== null && (skew > SKEW_EARLY_MS || skew < -SKEW_LATE_MS));
    html("sub-skew").textContent =
      skew === null ? "sound against lips" : Math.abs(skew) < 5 ? "sound and lips together" : skew > 0 ? "sound before lips" : "sound after lips";
    figure("fps", browser.fps === null || browser.fps === undefined ? whole(server.fps ?? null) : browser.fps.toFixed(0));
    const rung = rungWords(server.rung);
    figure("rung", rung.word);
    html("sub-rung").textContent = rung.note;
    const face = faceWords(server.face);
    figure("face", face.word);
    const advice = html("advice");
    const said = server.state === "faulted" ? "The engine has a fault: the source goes out until it recovers." : face.advice;
    advice.hidden = !said;
    if (advice.textContent !== said) advice.textContent = said;
    figure("voice", server.speaking === undefined ? "–" : server.speaking ? "Speaking" : "Silent");
    html("sub-voice").textContent =
      server.voice_buffered_ms === undefined ? "as the server hears it" : `${(server.voice_buffered_ms / 1000).toFixed(1)} s in store`;
    figure("buffer", whole(browser.bufferMs ?? null));
    html("sub-buffer").textContent = browser.dropped ? `${browser.dropped} frames dropped` : "waiting to be shown";
    this.#drawTable();
  }

  /** The last minute of added latency, newest at the right; the dashed line is the limit. */
  #drawSpark() {
    const top = Math.max(this.#limitMs, ...this.#latencies, 1);
    const first = SPARK_POINTS - this.#latencies.length;
    const points = this.#latencies.map((value, index) => {
      const x = (120 * (first + index)) / (SPARK_POINTS - 1);
      return `${x.toFixed(1)},${(39 - (38 * value) / top).toFixed(1)}`;
    });
    document.querySelector("#spark polyline")?.setAttribute("points", points.join(" "));
  }

  #drawTable() {
    if (!element("more", HTMLDetailsElement).open) return;
    const table = html("all-figures");
    const all = [...rows(this.#server), ...rows(this.#browser).map(([name, value]) => [`Browser: ${name}`, value])];
    table.replaceChildren(
      ...all.map(([name, value]) => {
        const row = document.createElement("tr");
        const head = document.createElement("th");
        head.scope = "row";
        head.textContent = name;
        const cell = document.createElement("td");
        cell.textContent = value;
        row.append(head, cell);
        return row;
      }),
    );
  }
}

/**
 * @param {string} name
 * @param {string} text
 * @param {boolean} [bad]
 */
function figure(name, text, bad = false) {
  const output = html(`fig-${name}`);
  if (output.textContent !== text) output.textContent = text;
  output.classList.toggle("bad", bad);
  output.classList.toggle("word", /[a-z]/i.test(text));
}

/** @param {number | null} value */
function whole(value) {
  return value === null || Number.isNaN(value) ? "–" : String(Math.round(value));
}

/** @param {number | null} value */
function signed(value) {
  if (value === null || Number.isNaN(value)) return "–";
  const rounded = Math.round(value);
  return rounded > 0 ? `+${rounded}` : rounded < 0 ? `−${-rounded}` : "0";
}
