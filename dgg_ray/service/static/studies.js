// The list of studies: what is selected, and a word when a study of one's own has ended.

import { toast } from "./api.js";

const FEWEST = 2;
const MOST = 8;
const OVER = { finished: "good", stopped: "info", failed: "bad" };

const form = document.querySelector("[data-selection]");
const me = document.querySelector(".tools .me")?.textContent;

function selected() {
  return [...document.querySelectorAll('input[name="subject"]:checked')];
}

function count() {
  const number = selected().length;
  const right = number >= FEWEST && number <= MOST;
  form.querySelector("[data-count]").textContent =
    number === 0 ? "Select two to eight studies to compare them."
    : number === 1 ? "1 selected; select one more to compare."
    : number > MOST ? `${number} selected; at most ${MOST} can be compared.`
    : `${number} selected`;
  form.querySelector("[type=submit]").disabled = !right;
  form.querySelector("[data-clear]").hidden = number === 0;
  form.classList.toggle("active", number > 0);
}

if (form) {
  document.addEventListener("change", (change) => change.target.matches('input[name="subject"]') && count());
  document.addEventListener("refreshed", count);
  form.querySelector("[data-clear]").addEventListener("click", () => {
    for (const box of selected()) box.checked = false;
    count();
    document.querySelector('input[name="subject"]')?.focus();
  });
  count();
}

for (const choice of document.querySelectorAll("[data-filters] select"))
  choice.addEventListener("change", () => choice.form.requestSubmit());

document.addEventListener("study", ({ detail: card }) => {
  const row = document.querySelector(`tr[data-study="${CSS.escape(card.name)}"]`);
  if (!row || row.dataset.state === card.state || card.owner !== me) return;
  if (card.state in OVER) toast(`${card.name} ${card.state === "finished" ? "has finished" : card.state === "stopped" ? "was stopped" : "has failed"}`, OVER[card.state]);
});
