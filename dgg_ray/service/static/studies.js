// The list of studies: what is selected, and a word when a study of one's own has ended.

import { toast } from "./api.js";

const ENDED = { finished: ["has finished", "good"], stopped: ["was stopped", "info"], failed: ["has failed", "bad"] };

const form = document.querySelector("[data-selection]");
const asked = form?.querySelector("[data-count]").textContent;
const me = document.querySelector(".tools .me")?.textContent;

function selected() {
  return [...document.querySelectorAll('input[name="subject"]:checked')];
}

function count() {
  const number = selected().length;
  const most = Number(form.dataset.selection);
  form.querySelector("[data-count]").textContent =
    number === 0 ? asked
    : number === 1 ? "1 selected; select one more to compare."
    : number > most ? `${number} selected; at most ${most} can be compared.`
    : `${number} selected`;
  form.querySelector("[type=submit]").disabled = number < 2 || number > most;
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
  const [words, kind] = ENDED[card.state] ?? [];
  if (words) toast(`${card.name} ${words}`, kind);
});
