/** What the page shows. Knows no session: main.js tells it what to show. */

import { Board } from "./board.js";
import { element, html } from "./dom.js";

/**
 * @typedef {"idle" | "starting" | "live" | "reconnecting" | "failed"} State
 */

/** @type {Readonly<Record<import("./session.js").Policy, string>>} */
const POLICIES = {
  live: "The picture is shown as soon as it is dubbed.",
  aligned: "The picture waits, so that a later dub meets the frames that its time stamps name.",
};

export class Page {
  board = new Board();

  form = element("setup", HTMLFormElement);
  start = element("start", HTMLButtonElement);
  stop = element("stop", HTMLButtonElement);
  interrupt = element("interrupt", HTMLButtonElement);
  again = element("again", HTMLButtonElement);
  hear = element("hear", HTMLButtonElement);
  mute = element("mute", HTMLButtonElement);
  closeAlert = element("alert-close", HTMLButtonElement);
  consent = element("consent", HTMLInputElement);
  policySelect = element("policy", HTMLSelectElement);
  file = element("voice-file", HTMLInputElement);
  source = element("source", HTMLVideoElement);
  dubbed = element("dubbed", HTMLVideoElement);

  /** @returns {State} */
  get state() {
    return /** @type {State} */ (document.body.dataset.state);
  }

  /** @returns {import("./session.js").Policy} */
  get policy() {
    return this.policySelect.value === "aligned" ? "aligned" : "live";
  }

  /** @param {"picture" | "voice"} group */
  choice(group) {
    return String(new FormData(this.form).get(group));
  }

  /**
   * Offer what the server has. What it no longer has goes; the choice stays where it can.
   *
   * @param {Array<{name: string, label: string}>} presenters
   */
  showPresenters(presenters) {
    const fieldset = html("picture-choices");
    const offered = [...fieldset.querySelectorAll("input[value^='file:']")].map((radio) => radio.getAttribute("value"));
    if (offered.join("\n") === presenters.map(({ name }) => `file:${name}`).join("\n")) return;
    const chosen = this.choice("picture");
    const [pattern] = fieldset.querySelectorAll("label.choice");
    for (const old of fieldset.querySelectorAll("label.choice:has([value^='file:'])")) old.remove();
    for (const { name, label } of presenters) {
      const choice = /** @type {HTMLElement} */ (pattern.cloneNode(true));
      const radio = /** @type {HTMLInputElement} */ (choice.querySelector("input"));
      radio.value = `file:${name}`;
      /** @type {HTMLElement} */ (choice.querySelector("b")).textContent = label;
      /** @type {HTMLElement} */ (choice.querySelector("small")).textContent = "No camera needed";
      fieldset.append(choice);
    }
    const radios = [...fieldset.querySelectorAll("input")];
    (radios.find((radio) => radio.value === chosen) ?? radios.at(-1) ?? radios[0]).checked = true;
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
    this.policySelect.disabled = running;
    if (state === "reconnecting") this.#showLost();
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

  /** What the chosen policy means, and the one number that goes with it. */
  showPolicy() {
    html("policy-why").textContent = POLICIES[this.policy];
    for (const [id, policy] of Object.entries({ budget: "live", hold: "aligned" })) {
      html(`${id}-row`).hidden = this.policy !== policy;
      // A number that is not shown must not keep the form from being sent.
      element(id, HTMLInputElement).disabled = this.policy !== policy;
    }
  }

  /**
   * @param {string} what
   * @param {{policy: import("./session.js").Policy, budgetMs: number, holdMs: number}} chosen
   */
  showSummary(what, { policy, budgetMs, holdMs }) {
    const held = policy === "aligned";
    this.board.showLimit(held ? holdMs : budgetMs, held);
    html("summary").textContent = held ? `${what}, held for ${holdMs} ms` : what;
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

  /** The last picture and its figures are of a connection that is no more. */
  #showLost() {
    this.dubbed.srcObject = null;
    this.#showNoDub("The connection is lost. The dubbed picture comes back with it.");
    this.board.clear();
  }

  /** @param {string} why */
  #showNoDub(why) {
    html("dubbed-empty-text").textContent = why;
    html("dubbed-empty").hidden = false;
    html("advice").hidden = true;
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
    this.#showNoDub("The dubbed picture appears here, with its sound.");
    this.showSource("", "");
    this.board.clear();
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
}

/** @param {number} ms */
function clock(ms) {
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}
