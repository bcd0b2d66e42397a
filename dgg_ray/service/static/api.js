// The API from a page: requests with the page's CSRF token, problems as errors, messages and questions to people.

const csrf = document.querySelector('meta[name="csrf-token"]')?.content ?? "";

/** What the API refused. faults: [{path, rule, found, near, line, text}] of a study or a form. */
export class Problem extends Error {
  constructor({ detail, title, status, faults = [] }) {
    super(faults.length ? faults.map((fault) => fault.text).join("\n") : detail || title || "Something went wrong");
    Object.assign(this, { status, faults });
  }
}

/** Call the API and return its JSON; null for an answer without a body. Throws Problem. */
export async function call(method, url, body, options = {}) {
  const headers = { accept: "application/json", "x-csrf-token": csrf };
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(url, { ...options, method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ detail: "The server does not answer. Is it running?", status: 0 });
  }
  const text = await response.text();
  let content = null;
  try {
    content = text ? JSON.parse(text) : null;
  } catch {
    content = { detail: text.slice(0, 300) };
  }
  if (response.status === 401) location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  if (!response.ok) throw new Problem({ status: response.status, ...content });
  return content;
}

export const get = (url, options) => call("GET", url, undefined, options);
export const post = (url, body = {}) => call("POST", url, body);

/** Show a message for a while; kind: "good", "info" or "bad". A bad one stays until it is closed. */
export function toast(text, kind = "good") {
  const box = document.createElement("div");
  box.className = `toast ${kind}`;
  if (kind === "bad") box.setAttribute("role", "alert");
  const words = document.createElement("p");
  words.textContent = text;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "plain";
  close.setAttribute("aria-label", "Close the message");
  close.textContent = "×";
  close.addEventListener("click", () => box.remove());
  box.append(words, close);
  document.getElementById("toasts").append(box);
  if (kind !== "bad") setTimeout(() => box.remove(), 6000);
}

/** In a figure's place: why it is not there, and a button that tries again. */
export function unavailable(place, error, again) {
  const words = document.createElement("p");
  words.className = "quiet";
  words.textContent = `This figure could not be drawn: ${error.message}`;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button small";
  button.textContent = "Try again";
  button.addEventListener("click", again);
  const box = document.createElement("div");
  box.className = "unavailable";
  box.setAttribute("role", "status");
  box.append(words, button);
  place.replaceChildren(box);
}

let refuse = null; // answers the question that is asked now with no

/** Ask a question; resolves to whether the answer is yes. The focus returns to where it was. */
export function confirm({ title, text, yes, danger = false }) {
  const dialog = document.getElementById("confirm");
  refuse?.();
  document.getElementById("confirm-title").textContent = title;
  document.getElementById("confirm-text").textContent = text;
  const button = document.getElementById("confirm-yes");
  button.textContent = yes || title;
  button.className = `button ${danger ? "danger" : "primary"}`;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    const answer = (found) => {
      dialog.removeEventListener("close", closed);
      refuse = null;
      resolve(found);
    };
    const closed = () => dialog.open || answer(dialog.returnValue === "yes"); // open: the event is of the question before
    dialog.addEventListener("close", closed);
    refuse = () => answer(false);
  });
}

/** Do something, and show what prevents it. busy: a button that waits meanwhile. */
export async function attempt(task, busy) {
  busy?.setAttribute("aria-busy", "true");
  if (busy) busy.disabled = true;
  try {
    return await task();
  } catch (error) {
    if (!(error instanceof Problem)) console.error(error);
    toast(error.message, "bad");
    return undefined;
  } finally {
    busy?.removeAttribute("aria-busy");
    if (busy) busy.disabled = false;
  }
}

/**
 * Buttons that call the API:
 * data-method, data-url, data-body (JSON); data-confirm, data-confirm-title (a question first);
 * data-after: "reload" (default), "refresh" (live regions), an address, or "event:NAME" with the answer as detail.
 */
export function startActions(root = document) {
  root.addEventListener("click", async (click) => {
    const button = click.target.closest("button[data-url]");
    if (!button) return;
    const { method = "POST", url, body, confirm: text, confirmTitle: title, after = "reload" } = button.dataset;
    if (text && !(await confirm({ title, text, yes: button.textContent.trim(), danger: button.classList.contains("danger") }))) return;
    await attempt(async () => {
      const content = await call(method, url, body ? JSON.parse(body) : method === "POST" ? {} : undefined);
      if (after === "reload") location.reload();
      else if (after === "refresh") document.dispatchEvent(new CustomEvent("refresh"));
      else if (after.startsWith("event:")) button.dispatchEvent(new CustomEvent(after.slice(6), { bubbles: true, detail: content }));
      else location.assign(after);
    }, button);
  });
}
