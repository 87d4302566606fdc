/**
 * Turns whatever went wrong into words for the person in front of the page: what happened, and what to do.
 *
 * @typedef {object} Explained
 * @property {string} title   what happened, in one sentence
 * @property {string} todo    what to do about it
 * @property {string} [detail] what the machine said, for a bug report
 */

/** A failure that already knows which explanation belongs to it. */
export class ClientError extends Error {
  /**
   * @param {string} code     a key of EXPLANATIONS, or a code of the server's
   * @param {string} [message]
   * @param {{hint?: string, status?: number, cause?: unknown}} [more]
   */
  constructor(code, message = "", more = {}) {
    super(message || code, { cause: more.cause });
    this.name = "ClientError";
    this.code = code;
    this.hint = more.hint ?? "";
    this.status = more.status ?? 0;
  }
}

const INSECURE = "Open this page as https://… or as http://localhost, or choose the sample presenter and an audio file.";

/** @type {Readonly<Record<string, {title: string, todo: string}>>} */
const EXPLANATIONS = {
  "camera-denied": {
    title: "The browser may not use the camera.",
    todo: "Allow the camera for this page (the camera or lock sign beside the address), then press Start again. Or choose the sample presenter.",
  },
  "camera-missing": {
    title: "No camera was found.",
    todo: "Connect a camera and press Start again. Or choose the sample presenter, which needs none.",
  },
  "camera-busy": {
    title: "The camera is there, but gave no picture.",
    todo: "Close other programs that use the camera, then press Start again.",
  },
  "microphone-denied": {
    title: "The browser may not use the microphone.",
    todo: "Allow the microphone for this page (the lock sign beside the address), then press Start again. Or choose an audio file or the sample speech.",
  },
  "microphone-missing": {
    title: "No microphone was found.",
    todo: "Connect a microphone and press Start again. Or choose an audio file or the sample speech.",
  },
  "microphone-busy": {
    title: "The microphone is there, but gave no sound.",
    todo: "Close other programs that use the microphone, then press Start again.",
  },
  "camera-ended": {
    title: "The camera stopped.",
    todo: "Check that it is still connected, then press Start again.",
  },
  "microphone-ended": {
    title: "The microphone stopped.",
    todo: "Check that it is still connected, then press Start again.",
  },
  insecure: { title: "The browser gives out the camera and microphone only over a secure address.", todo: INSECURE },
  unsupported: {
    title: "This browser cannot show the dubbed stream.",
    todo: "It lacks WebRTC. Use a current Chrome, Edge, Firefox or Safari.",
  },
  "file-unreadable": {
    title: "This file is not sound that the browser can read.",
    todo: "Choose a WAV, MP3, FLAC, Ogg or M4A file.",
  },
  "file-empty": { title: "This file holds no sound.", todo: "Choose a file with speech in it." },
  "file-long": { title: "This file is too long for the page.", todo: "Choose a file of at most 30 minutes." },
  "sample-missing": {
    title: "The sample speech could not be loaded.",
    todo: "Choose an audio file of your own, and tell whoever runs this server.",
  },
  "server-gone": {
    title: "The server does not answer.",
    todo: "Check that it is still running and that you are online, then press Start again.",
  },
  "connection-failed": {
    title: "Picture and sound found no way through the network.",
    todo: "A firewall may block UDP. Try another network, or ask whoever runs this server for a TURN relay.",
  },
  full: {
    title: "The server is full.",
    todo: "Every place is taken. Wait a minute, then press Start again.",
  },
  loading: {
    title: "The server is still getting ready.",
    todo: "It is loading its engine. Wait a few seconds, then press Start again.",
  },
  draining: {
    title: "The server is about to shut down.",
    todo: "It takes no new sessions. Try again later.",
  },
  mark_required: {
    title: "This server marks every dubbed picture.",
    todo: "Tick “Show a mark” under Options, then press Start again.",
  },
  bad_latency_budget: {
    title: "This latency limit is not possible here.",
    todo: "Change it under Options, then press Start again.",
  },
  bad_hold: {
    title: "The picture cannot be held that long here.",
    todo: "Change it under Options, then press Start again.",
  },
  "key-needed": {
    title: "This server asks for a key.",
    todo: "Enter it under Options, then press Start again.",
  },
  replaced: {
    title: "Another page has taken over this session.",
    todo: "Press Start to begin a new one here.",
  },
  "session-gone": { title: "The server has ended this session.", todo: "Press Start to begin a new one." },
};

/**
 * @param {unknown} error
 * @returns {Explained}
 */
export function explain(error) {
  if (error instanceof ClientError) {
    const known = EXPLANATIONS[error.code];
    const said = error.message === error.code ? "" : error.message;
    if (known) return { ...known, detail: said || undefined };
    return {
      title: sentence(said || "The server refused."),
      todo: sentence(error.hint || "Change the choice on the left, then press Start again."),
      detail: error.code,
    };
  }
  const text = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  return { title: "Something went wrong on this page.", todo: "Reload the page and try again.", detail: text };
}

/**
 * What getUserMedia threw, as a ClientError.
 *
 * @param {unknown} error
 * @param {"camera" | "microphone"} device
 */
export function deviceError(error, device) {
  const name = error instanceof Error || error instanceof DOMException ? error.name : "";
  const said = error instanceof Error || error instanceof DOMException ? error.message : String(error);
  const kind =
    name === "NotAllowedError" || name === "SecurityError" ? "denied"
    : name === "NotFoundError" || name === "OverconstrainedError" ? "missing"
    : "busy";
  return new ClientError(`${device}-${kind}`, `${name}: ${said}`, { cause: error });
}

/**
 * The server's `{"error": {code, message, hint}}`, as a ClientError.
 *
 * @param {unknown} body   parsed JSON, or anything
 * @param {number} status  the HTTP status, 0 where there is none
 */
export function serverError(body, status) {
  const error = /** @type {{error?: {code?: string, message?: string, hint?: string}}} */ (body ?? {}).error ?? {};
  if (error.code && error.code in EXPLANATIONS) return new ClientError(error.code, error.message, { hint: error.hint, status });
  if (status === 503 && !error.code) return new ClientError("full", error.message, { hint: error.hint, status });
  if (status === 401) return new ClientError("key-needed", error.message, { hint: error.hint, status });
  if (status === 502 || status === 504) return new ClientError("server-gone", `HTTP ${status}`, { status });
  return new ClientError(error.code ?? `http-${status}`, error.message ?? `The server answered ${status}.`, {
    hint: error.hint,
    status,
  });
}

/** @param {string} text */
function sentence(text) {
  const trimmed = text.trim();
  const upper = trimmed.charAt(0).toUpperCase() + trimmed.slice(1);
  return /[.!?…]$/.test(upper) ? upper : `${upper}.`;
}
