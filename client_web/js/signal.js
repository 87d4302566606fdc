/**
 * The signalling socket of one peer connection: JSON both ways.
 *
 * Events: `message` (detail: the parsed message), `lost` (detail: {code, reason}) when it closes without `close()`.
 */
export class Signal extends EventTarget {
  /** @param {string} url */
  constructor(url) {
    super();
    this.closed = false;
    this.socket = new WebSocket(url);
    this.socket.addEventListener("message", (event) => this.#received(event));
    this.socket.addEventListener("close", (event) => {
      if (this.closed) return;
      this.closed = true;
      this.dispatchEvent(new CustomEvent("lost", { detail: { code: event.code, reason: event.reason } }));
    });
  }

  /** Resolves once open; a socket that closes first says so by `lost`. */
  opened() {
    return new Promise((resolve) => {
      if (this.socket.readyState === WebSocket.OPEN) resolve(undefined);
      else this.socket.addEventListener("open", () => resolve(undefined), { once: true });
    });
  }

  /** @param {Record<string, unknown>} message  dropped, not queued, while the socket is not open */
  send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  close() {
    if (this.closed) return;
    this.closed = true;
    this.send({ type: "bye" });
    this.socket.close(1000);
  }

  /** @param {MessageEvent} event */
  #received(event) {
    let message;
    try {
      message = JSON.parse(event.data);
    } catch {
      return;
    }
    this.dispatchEvent(new CustomEvent("message", { detail: message }));
  }
}
