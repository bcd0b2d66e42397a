// What every page does.

import { startActions } from "./api.js";
import { startLive } from "./live.js";
import { startTheme } from "./theme.js";

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"]];
const SCROLLED = ".wide-table, .scroll, .tree";

/** How long ago a Unix time was; rendering.ago says the same. */
export function ago(at) {
  const passed = Date.now() / 1000 - at;
  const unit = UNITS.find(([size]) => passed >= size);
  return unit ? `${Math.floor(passed / unit[0])} ${unit[1]} ago` : "just now";
}

function tellTimes() {
  for (const time of document.querySelectorAll("time[data-ago]")) {
    const text = ago(Number(time.dataset.ago));
    if (time.textContent !== text) time.textContent = text;
  }
}

/** Buttons that copy: data-copy="#ID", or the text beside them. */
function startCopying() {
  document.addEventListener("click", async (click) => {
    const button = click.target.closest("[data-copy]");
    if (!button) return;
    const source = button.dataset.copy ? document.querySelector(button.dataset.copy) : button.parentElement.querySelector("code, input");
    tell(button, await copied(source));
  });
}

async function copied(source) {
  try {
    await navigator.clipboard.writeText(source.value ?? source.textContent);
    return "Copied";
  } catch {
    const range = document.createRange(); // without a secure connection: select it
    range.selectNodeContents(source);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return "Press Ctrl-C";
  }
}

/** Let a button say something for a moment: a message would lie behind an open dialog. */
function tell(button, text) {
  const label = button.lastChild;
  const before = button.dataset.label ?? label.textContent;
  button.dataset.label = before;
  label.textContent = text;
  setTimeout(() => (label.textContent = before), 2000);
}

const sizes = new ResizeObserver((changes) => {
  for (const { target } of changes) {
    const place = target.closest(SCROLLED);
    if (place.scrollWidth > place.clientWidth || place.scrollHeight > place.clientHeight) place.tabIndex = 0;
    else place.removeAttribute("tabindex");
  }
});

/** What is larger than its place can be reached by keyboard, and then scrolled. */
function scrollByKeyboard() {
  for (const place of document.querySelectorAll(SCROLLED)) for (const part of [place, ...place.children]) sizes.observe(part);
}

startTheme();
startActions();
startCopying();
startLive();
scrollByKeyboard();
document.addEventListener("refreshed", scrollByKeyboard);
setInterval(tellTimes, 20000);
// Not scrollIntoView: the Tab key would then go on from there.
for (const tab of document.querySelectorAll(".tabs [aria-current]")) tab.parentElement.scrollLeft = tab.offsetLeft - tab.parentElement.offsetLeft - 16;
