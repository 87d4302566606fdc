/**
 * The server's HTTP routes that the page needs.
 *
 * @typedef {object} SessionRequest
 * @property {"webrtc" | {file: string}} source
 * @property {true} consent
 * @property {"live" | "aligned"} policy
 * @property {number} [latency_budget_ms]  of a live session
 * @property {number} [hold_ms]            of an aligned session
 * @property {"source" | "rest"} idle
 * @property {boolean} mark
 *
 * @typedef {object} SessionInfo
 * @property {string} id
 * @property {string} token
 * @property {Record<string, string>} urls
 * @property {RTCIceServer[]} ice_servers
 */

import { ClientError, serverError } from "./errors.js";

/**
 * @param {string} path
 * @param {RequestInit} init
 * @returns {Promise<Response>}
 */
async function ask(path, init) {
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ClientError("server-gone", String(error), { cause: error });
  }
  if (response.ok) return response;
  throw serverError(await response.json().catch(() => null), response.status);
}

/**
 * @param {SessionRequest} request
 * @param {string} key     the server key, or ""
 * @param {AbortSignal} [signal]
 * @returns {Promise<SessionInfo>}
 */
export async function createSession(request, key, signal) {
  /** @type {Record<string, string>} */
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await ask("v1/sessions", { method: "POST", headers, body: JSON.stringify(request), signal });
  return response.json();
}

/**
 * The presenters that the server offers instead of a camera; null where it does not tell (a key is needed, or it is gone).
 *
 * @param {string} key
 * @returns {Promise<Array<{name: string, label: string}> | null>}
 */
export async function listPresenters(key) {
  /** @type {Record<string, string>} */
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch("v1/presenters", { headers }).catch(() => null);
  if (!answer?.ok) return null;
  return (await answer.json()).presenters;
}

/**
 * Ends a session; never throws, because the page is done with it either way.
 *
 * @param {SessionInfo} info
 */
export async function deleteSession(info) {
  const headers = { Authorization: `Bearer ${info.token}` };
  // keepalive lets the request outlive a page that is being closed.
  await fetch(`v1/sessions/${info.id}`, { method: "DELETE", headers, keepalive: true }).catch(() => {});
}

/**
 * @param {SessionInfo} info
 * @param {"signal" | "voice"} what
 */
export function socketUrl(info, what) {
  const url = new URL(info.urls?.[what] ?? `v1/sessions/${info.id}/${what}`, document.baseURI);
  url.protocol = url.protocol === "https:" || url.protocol === "wss:" ? "wss:" : "ws:";
  url.searchParams.set("token", info.token);
  return url.href;
}
