// What every page does.

import { startActions, toast } from "./api.js";
import { startLive } from "./live.js";
import { startTheme } from "./theme.js";

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"]];

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
    try {
      await navigator.clipboard.writeText(source.value ?? source.textContent);
      toast("Copied");
    } catch {
      const range = document.createRange(); // without a secure connection: select it, so that Ctrl-C copies
      range.selectNodeContents(source);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      toast("Selected; press Ctrl-C to copy", "info");
    }
  });
}

startTheme();
startActions();
startCopying();
startLive();
setInterval(tellTimes, 20000);
