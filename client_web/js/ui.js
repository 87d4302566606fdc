/** What the page shows. Knows no session: main.js tells it what to show. */

import { faceWords, rows, rungWords } from "./figures.js";

/**
 * @typedef {"idle" | "starting" | "live" | "reconnecting" | "failed"} State
 */

/** A minute of the server's statistics, which come twice a second. */
const SPARK_POINTS = 120;
/** ITU-R BT.1359: people begin to notice sound that is early by 45 ms or late by 125 ms. */
const SKEW_EARLY_MS = 45;
const SKEW_LATE_MS = 125;

/**
 * @template {Element} T
 * @param {string} id
 * @param {new (...args: any[]) => T} kind
 * @returns {T}
 */
export function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`index.html lacks #${id}`);
  return found;
}

/** @param {string} id */
const html = (id) => element(id, HTMLElement);

export class Page {
  #latencies = /** @type {number[]} */ ([]);
  #server = /** @type {Record<string, any>} */ ({});
  #browser = /** @type {Partial<import("./figures.js").BrowserFigures>} */ ({});
  #budgetMs = 0;

  form = element("setup", HTMLFormElement);
  start = element("start", HTMLButtonElement);
  stop = element("stop", HTMLButtonElement);
  interrupt = element("interrupt", HTMLButtonElement);
  again = element("again", HTMLButtonElement);
  hear = element("hear", HTMLButtonElement);
  mute = element("mute", HTMLButtonElement);
  closeAlert = element("alert-close", HTMLButtonElement);
  consent = element("consent", HTMLInputElement);
  file = element("voice-file", HTMLInputElement);
  source = element("source", HTMLVideoElement);
  dubbed = element("dubbed", HTMLVideoElement);

  /** @returns {State} */
  get state() {
    return /** @type {State} */ (document.body.dataset.state);
  }

  /** @param {"picture" | "voice"} group */
  choice(group) {
    return String(new FormData(this.form).get(group));
  }

  /**
   * @param {State} state
   * @param {string} text  announced to screen readers
   */
  showState(state, text) {
    const running = state === "starting" || state === "live" || state === "reconnecting";
    const wasFocused = document.activeElement;
    document.body.dataset.state = state;
    const line = html("status-text");
    if (line.textContent !== text) line.textContent = text;
    html("choices").hidden = running;
    html("summary").hidden = !running;
    this.start.hidden = running;
    this.stop.hidden = !running;
    // The button under the finger changes; the keyboard's place must not be lost with it.
    if (running && wasFocused === this.start) this.stop.focus();
    if (!running && wasFocused === this.stop) this.start.focus();
    if (!running) {
      this.interrupt.hidden = true;
      this.again.hidden = true;
      this.hear.hidden = true;
      this.mute.hidden = true;
      html("progress").hidden = true;
    }
  }

  /**
   * Start is open only to someone who has agreed and chosen; the sentence beside it says what is missing.
   *
   * @param {boolean} supported
   */
  showReadiness(supported) {
    const needsFile = this.choice("voice") === "file" && !this.file.files?.length;
    html("file-row").hidden = this.choice("voice") !== "file";
    this.start.disabled = !supported || !this.consent.checked || needsFile;
    html("consent-why").textContent = !this.consent.checked
      ? "A face and a voice belong to a person, so nothing starts before this box is ticked."
      : needsFile
        ? "Choose an audio file, then press Start."
        : "Thank you. Press Start when you are ready.";
  }

  /**
   * @param {string} what
   * @param {number} budgetMs
   */
  showSummary(what, budgetMs) {
    this.#budgetMs = budgetMs;
    html("summary").textContent = what;
  }

  /**
   * @param {string} name
   * @param {string} poster  address of a still, or ""
   */
  showSource(name, poster) {
    html("source-name").textContent = name;
    const still = element("poster", HTMLImageElement);
    still.hidden = !poster;
    if (poster) still.src = poster;
    html("source-empty").hidden = Boolean(poster);
    html("source-empty-text").textContent = name ? `${name}: its picture is read on the server.` : "The source appears here, muted.";
  }

  /** @param {MediaStream} stream */
  showCamera(stream) {
    this.source.srcObject = stream;
    this.source.play().catch(() => {});
    html("source-empty").hidden = true;
  }

  /** @param {MediaStream} stream */
  async showDubbed(stream) {
    if (this.dubbed.srcObject !== stream) this.dubbed.srcObject = stream;
    html("dubbed-empty").hidden = true;
    this.mute.hidden = false;
    try {
      await this.dubbed.play();
    } catch (error) {
      if (!(error instanceof DOMException) || error.name !== "NotAllowedError") return;
      // The browser wants a click before sound: show the picture meanwhile.
      this.dubbed.muted = true;
      this.hear.hidden = false;
      await this.dubbed.play().catch(() => {});
    }
  }

  /** @param {boolean} muted */
  setMuted(muted) {
    this.dubbed.muted = muted;
    this.dubbed.play().catch(() => {});
    this.mute.setAttribute("aria-pressed", String(muted));
    this.mute.textContent = muted ? "Unmute" : "Mute";
    if (!muted) this.hear.hidden = true;
  }

  clearPictures() {
    this.source.srcObject = null;
    this.dubbed.srcObject = null;
    this.setMuted(false);
    html("dubbed-empty").hidden = false;
    html("advice").hidden = true;
    this.showSource("", "");
    this.#latencies = [];
    this.#server = {};
    this.#browser = {};
    this.#drawFigures();
  }

  /** @param {import("./errors.js").Explained} explained */
  showAlert(explained) {
    html("alert-title").textContent = explained.title;
    html("alert-todo").textContent = explained.todo;
    const detail = html("alert-detail");
    detail.textContent = explained.detail ? `Detail: ${explained.detail}` : "";
    detail.hidden = !explained.detail;
    const box = html("alert");
    box.hidden = false;
    box.scrollIntoView({ block: "nearest" });
  }

  hideAlert() {
    html("alert").hidden = true;
  }

  /**
   * @param {{speaking: boolean, canSpeak: boolean, microphone: boolean}} now
   */
  showVoiceButtons({ speaking, canSpeak, microphone }) {
    const focused = document.activeElement;
    this.interrupt.hidden = !(speaking || microphone);
    this.again.hidden = !(canSpeak && !speaking);
    if (this.interrupt.hidden && focused === this.interrupt && !this.again.hidden) this.again.focus();
    if (this.again.hidden && focused === this.again && !this.interrupt.hidden) this.interrupt.focus();
  }

  /**
   * @param {number} playedMs
   * @param {number} totalMs
   */
  showProgress(playedMs, totalMs) {
    html("progress").hidden = false;
    element("progress-bar", HTMLProgressElement).value = totalMs > 0 ? playedMs / totalMs : 0;
    html("progress-text").textContent = `${clock(playedMs)} of ${clock(totalMs)}`;
  }

  /** @param {Record<string, any>} stats */
  showServerFigures(stats) {
    this.#server = stats;
    this.#drawFigures();
  }

  /** @param {import("./figures.js").BrowserFigures} figures */
  showBrowserFigures(figures) {
    this.#browser = figures;
    this.#drawFigures();
  }

  #drawFigures() {
    const server = this.#server;
    const browser = this.#browser;
    const latency = server.added_latency_ms?.p50 ?? null;
    const p95 = server.added_latency_ms?.p95 ?? null;
    if (latency !== null) this.#latencies = [...this.#latencies, latency].slice(-SPARK_POINTS);
    figure("latency", whole(latency), this.#budgetMs > 0 && latency > this.#budgetMs);
    const limit = this.#budgetMs ? `limit ${this.#budgetMs} ms` : "from arrival to release";
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
    const top = Math.max(this.#budgetMs, ...this.#latencies, 1);
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

/** @param {number} ms */
function clock(ms) {
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}
