/** Wires the page to one session at a time. */

import { listPresenters } from "./api.js";
import { element } from "./dom.js";
import { ClientError, explain } from "./errors.js";
import { Session } from "./session.js";
import { Page } from "./ui.js";
import { fetchSample } from "./voice.js";

const page = new Page();
const supported = "RTCPeerConnection" in window && "WebSocket" in window && "OfflineAudioContext" in window;

/** Refusals whose remedy lies under Options. */
const IN_OPTIONS = new Set(["key-needed", "mark_required", "bad_latency_budget", "bad_hold"]);

const SAID = {
  finished: "The voice has finished",
  interrupted: "The voice was interrupted",
  refused: "The voice was refused",
  replaced: "Another speaker has taken the voice over",
};

/** @type {Session | null} */
let session = null;

/** @param {string} id */
const input = (id) => element(id, HTMLInputElement);

/** @returns {import("./session.js").Choices} */
function choices() {
  const picture = page.choice("picture");
  const voice = page.choice("voice");
  const file = page.file.files?.[0];
  const load = { sample: () => fetchSample(), file: async () => (file ? file.arrayBuffer() : new ArrayBuffer(0)) };
  return {
    source: picture === "camera" ? "webrtc" : { file: picture.slice("file:".length) },
    voice: voice === "microphone" ? "microphone" : "pcm",
    loadVoice: voice === "microphone" ? undefined : load[/** @type {"sample" | "file"} */ (voice)],
    policy: page.policy,
    budgetMs: input("budget").valueAsNumber || 400,
    holdMs: input("hold").valueAsNumber || 3000,
    idle: /** @type {"source" | "rest"} */ (element("idle", HTMLSelectElement).value),
    mark: input("mark").checked,
    key: input("key").value.trim(),
  };
}

/** @param {"picture" | "voice"} group */
function chosenName(group) {
  return page.form.querySelector(`input[name="${group}"]:checked + .what b`)?.textContent ?? "";
}

function start() {
  if (session) return;
  const chosen = choices();
  const mine = new Session(chosen);
  session = mine;
  page.hideAlert();
  page.showSummary(`${chosenName("picture")} with ${chosenName("voice").toLowerCase()}`, chosen);
  page.showSource(chosenName("picture"), "");
  /**
   * @param {string} type
   * @param {(detail: any) => void} act
   */
  const on = (type, act) => {
    mine.addEventListener(type, (event) => {
      if (session === mine) act(/** @type {CustomEvent} */ (event).detail);
    });
  };
  const buttons = () => {
    const microphone = chosen.voice === "microphone" && page.state === "live";
    page.showVoiceButtons({ speaking: mine.speaking, canSpeak: mine.canSpeak && page.state === "live", microphone });
  };
  on("state", ({ state, text }) => {
    page.showState(state, text);
    buttons();
  });
  on("source", ({ stream }) => page.showCamera(stream));
  on("poster", ({ url }) => page.showSource(chosenName("picture"), url));
  on("dubbed", ({ stream }) => page.showDubbed(stream));
  on("stats", ({ server }) => page.board.showServer(server));
  on("browser", ({ figures }) => page.board.showBrowser(figures));
  on("voice", ({ playedMs, totalMs, speaking, how }) => {
    page.showProgress(playedMs, totalMs);
    buttons();
    // A voice that ends while the connection is being restored does not restore it.
    if (page.state !== "live") return;
    if (!speaking) {
      page.showState("live", SAID[/** @type {keyof typeof SAID} */ (how)]);
    } else page.showState("live", "Live");
  });
  on("warning", ({ error }) => page.showAlert(explain(error)));
  on("failed", ({ error }) => {
    session = null;
    page.clearPictures();
    page.showState("failed", "Stopped");
    page.showAlert(explain(error));
    page.showReadiness(supported);
    if (IN_OPTIONS.has(error.code)) element("options", HTMLDetailsElement).open = true;
  });
  mine.start();
}

function stop() {
  const ending = session;
  session = null;
  ending?.stop();
  page.clearPictures();
  page.showState("idle", "Stopped");
  page.showReadiness(supported);
}

async function offerPresenters() {
  const presenters = await listPresenters(input("key").value.trim());
  if (presenters && page.state === "idle") page.showPresenters(presenters);
}

page.form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!page.start.disabled) start();
});
page.form.addEventListener("change", () => page.showReadiness(supported));
page.form.addEventListener("change", () => page.showPolicy());
page.stop.addEventListener("click", stop);
page.interrupt.addEventListener("click", () => session?.interrupt());
page.again.addEventListener("click", () => session?.speak());
page.hear.addEventListener("click", () => page.setMuted(false));
page.mute.addEventListener("click", () => page.setMuted(!page.dubbed.muted));
page.closeAlert.addEventListener("click", () => {
  page.hideAlert();
  (session ? page.stop : page.start).focus();
});
window.addEventListener("pagehide", stop);

input("key").addEventListener("change", offerPresenters);

page.showPolicy();
page.showReadiness(supported);
offerPresenters();
if (!supported) {
  page.showState("failed", "This browser is not supported");
  page.showAlert(explain(new ClientError("unsupported")));
}
