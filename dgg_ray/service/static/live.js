// What changes while a page is open.
//
//   <body> … <section id="studies" data-live>     is fetched again, and what differs is replaced
//                                                 by `morph`; data-live="NAME": when that study changes
//   document's events "study" and "gone"          what changed, where the page has live regions
//
// A browser opens six connections to a server at most, so a page that nobody sees gives its one back.

const QUIET_MS = 1500; // between two fetches of a page
const RETRY_MS = [1000, 2000, 5000, 10000, 30000];

/** Call back for each change: {study(card), gone({name}), reset()}. study: a name; "" is all. */
function subscribe(handlers, study = "") {
  const path = study ? `/api/v1/studies/${encodeURIComponent(study)}/events` : "/api/v1/events";
  let last = document.querySelector('meta[name="last-event"]')?.content ?? "";
  let source = null;
  let failures = 0;
  let timer = 0;

  const close = () => {
    clearTimeout(timer);
    source?.close();
    source = null;
  };
  const open = () => {
    if (source || document.hidden) return;
    source = new EventSource(`${path}?last=${encodeURIComponent(last)}`);
    source.addEventListener("open", () => {
      failures = 0;
      connection("live");
    });
    source.addEventListener("error", () => {
      close();
      connection("lost");
      timer = setTimeout(open, RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
    });
    for (const kind of ["study", "gone", "reset"])
      source.addEventListener(kind, (message) => {
        last = message.lastEventId;
        handlers[kind]?.(JSON.parse(message.data));
      });
  };
  const look = () => (document.hidden ? close() : open());
  document.addEventListener("visibilitychange", look);
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  open();
}

function connection(state) {
  for (const place of document.querySelectorAll("[data-connection]")) {
    if (place.dataset.connection === state) continue;
    place.dataset.connection = state;
    place.textContent = state === "live" ? "live" : "connection lost, trying again";
  }
}

// -- regions that are fetched again --------------------------------------------------------------------

let waiting = 0;
let fetching = false;
let again = false;

/** Fetch this page again soon, and replace what differs in its [data-live] regions. */
function refresh() {
  if (fetching) again = true;
  else if (!waiting)
    waiting = setTimeout(async () => {
      waiting = 0;
      fetching = true;
      await fetchRegions().catch(() => undefined); // the next change tries again
      fetching = false;
      if (again) {
        again = false;
        refresh();
      }
    }, QUIET_MS);
}

async function fetchRegions() {
  const response = await fetch(location.href, { headers: { accept: "text/html" } });
  if (response.redirected) location.reload(); // logged out meanwhile
  if (!response.ok || response.redirected) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const region of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(region.id);
    if (fresh) morph(region, fresh);
  }
  document.dispatchEvent(new CustomEvent("refreshed"));
}

/** Make `old` like `fresh`, keeping every element that stays: its focus, selection and what was entered. */
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && !KEPT.has(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value && !KEPT.has(name)) old.setAttribute(name, value);
  const byKey = new Map([...old.children].filter((child) => child.dataset.key).map((child) => [child.dataset.key, child]));
  let place = old.firstChild;
  for (const node of [...fresh.childNodes]) {
    const key = node.dataset?.key;
    const found = key ? byKey.get(key) : alike(place, node) ? place : null;
    if (!found) {
      old.insertBefore(document.importNode(node, true), place);
      continue;
    }
    if (found === place) place = place.nextSibling;
    else move(old, found, place);
    if (found.nodeType === Node.ELEMENT_NODE) morph(found, node);
    else if (found.data !== node.data) found.data = node.data;
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

/** Move a child, with the focus where that is inside it. */
function move(parent, child, place) {
  if (parent.moveBefore) {
    parent.moveBefore(child, place);
    return;
  }
  const focused = document.activeElement;
  parent.insertBefore(child, place);
  if (child.contains(focused)) focused.focus({ preventScroll: true });
}

const KEPT = new Set(["open", "checked", "aria-busy", "tabindex"]);
const alike = (a, b) => a && a.nodeType === b.nodeType && a.nodeName === b.nodeName && !a.dataset?.key && (a.id || "") === (b.id || "");

/** Follow what changes wherever the page has live regions. */
export function startLive() {
  document.addEventListener("refresh", refresh);
  const region = document.querySelector("[data-live]");
  if (!region) return;
  const changed = (kind) => (detail) => {
    document.dispatchEvent(new CustomEvent(kind, { detail }));
    refresh();
  };
  subscribe({ study: changed("study"), gone: changed("gone"), reset: refresh }, region.dataset.live);
}
