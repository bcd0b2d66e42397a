// The pages of one study, of its examples, and of studies side by side: charts, the stage tree, tables, the log.

import { attempt, confirm, get, post, Problem } from "./api.js";
import { drawCharts } from "./charts.js";
import { showTree } from "./tree.js";

const READ_AGAIN_MS = 2500;
const LOG_MS = 3000;

/** What is still being read: ask again, once the page was seen for a moment. */
function waitForResults() {
  if (document.querySelector("[data-reading]")) setTimeout(() => location.reload(), READ_AGAIN_MS);
}

/** Say that there are new results, which come with stages that end, rather than let the page jump. */
function watchResults() {
  const head = document.getElementById("head");
  if (!head) return;
  const { done, failed } = head.dataset; // as the page was made; the region follows what changes
  document.addEventListener("study", ({ detail: { progress } }) => {
    if (!progress) return;
    const changed = (progress.done ?? 0) !== Number(done) || (progress.failed ?? 0) !== Number(failed);
    document.getElementById("fresh").hidden = !changed;
  });
}

function sortTables() {
  for (const table of document.querySelectorAll("[data-sortable]"))
    table.addEventListener("click", (click) => {
      const button = click.target.closest("[data-sort]");
      if (!button) return;
      const heading = button.closest("th");
      const up = heading.getAttribute("aria-sort") === "descending";
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row.cells[button.dataset.sort]), row]);
      rows.sort(([a], [b]) => compareValues(a, b, up ? 1 : -1));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
}

/** What a cell sorts by: the number in data-value where that is one, else the text; null for none. */
function valueOf(cell) {
  const { value } = cell.dataset;
  const text = (value ?? cell.textContent).trim();
  if (text === "" || text === "–") return null;
  return value === undefined || Number.isNaN(Number(text)) ? text : Number(text);
}

/** What has no value comes last, whichever way. */
function compareValues(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
}

function filterTables() {
  for (const input of document.querySelectorAll("[data-filter-table]"))
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase();
      for (const row of document.getElementById(input.dataset.filterTable).tBodies[0].rows)
        row.hidden = !row.textContent.toLowerCase().includes(words);
    });
}

function followLog() {
  const log = document.querySelector("[data-log]");
  if (!log) return;
  const atEnd = () => log.scrollTop + log.clientHeight >= log.scrollHeight - 40;
  log.scrollTop = log.scrollHeight;
  let whole = false; // the study is over, and nothing came since
  setInterval(async () => {
    const over = "over" in document.getElementById("head").dataset;
    whole &&= over;
    if (document.hidden || whole) return;
    const text = await fetch(log.dataset.log).then((response) => (response.ok ? response.text() : null), () => null);
    if (text === null) return;
    const shown = text || "Nothing was printed yet.";
    whole = over && log.firstElementChild.textContent === shown;
    const stay = atEnd();
    log.firstElementChild.textContent = shown;
    if (stay) log.scrollTop = log.scrollHeight;
  }, LOG_MS);
}

/** Left and right turn the pages of examples. */
function turnPages() {
  if (!document.querySelector(".examples")) return;
  document.addEventListener("keydown", (key) => {
    if (key.target.closest("input, select, textarea, [contenteditable]") || key.altKey || key.ctrlKey || key.metaKey) return;
    const link = { ArrowLeft: "prev", ArrowRight: "next" }[key.key];
    document.querySelector(`.pagination a[rel="${link}"]`)?.click();
  });
}

/** Change the budget: send the limits that were changed, and say beside each what is wrong with it. */
function changeBudget() {
  const form = document.querySelector("[data-budget]");
  form?.addEventListener("submit", (submit) => {
    submit.preventDefault();
    const changed = [...form.querySelectorAll("input")].filter((field) => field.value !== field.defaultValue);
    const limits = Object.fromEntries(changed.map((field) => [field.name, Number(field.value)]));
    const faults = changed.filter((field) => field.value === "").map((field) => ({ path: field.name, rule: "needs a number" }));
    if (!changed.length) faults.push({ path: "", rule: "Change a limit first." });
    tellFaults(form, faults);
    if (!faults.length) attempt(() => sendBudget(form, limits), form.querySelector("[type=submit]"));
  });
}

async function sendBudget(form, limits) {
  const said = Object.keys(limits).map((name) => `${form.elements[name].labels[0].textContent}: ${limits[name]}`).join(", ");
  if (!(await confirm({ title: "Change the budget?", text: `${said}. It is recorded with your name, and applies at once.`, yes: "Change the budget" }))) return;
  try {
    await post(form.dataset.budget, { limits });
    location.reload();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    tellFaults(form, problem.faults.length ? problem.faults : [{ path: "", rule: problem.message }]);
  }
}

/** Show each fault beside its field, those of no field below the form, and go to the first. */
function tellFaults(form, faults) {
  const rest = form.querySelector("[data-rest]");
  const fields = [...form.querySelectorAll("input")];
  for (const field of fields) {
    const own = faults.filter((fault) => fault.path.split(".").pop() === field.name).map((fault) => fault.rule);
    document.getElementById(`error-${field.name}`).textContent = own.join("; ");
    if (own.length) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
  }
  const names = fields.map((field) => field.name);
  rest.textContent = faults.filter((fault) => !names.includes(fault.path.split(".").pop())).map((fault) => fault.rule).join("; ");
  form.querySelector("[aria-invalid]")?.focus();
}

async function start() {
  waitForResults();
  watchResults();
  sortTables();
  filterTables();
  followLog();
  turnPages();
  changeBudget();
  for (const form of document.querySelectorAll("[data-submits]"))
    form.addEventListener("change", (change) => change.target.matches("select") && form.requestSubmit());
  await Promise.all([showTree(), drawCharts()]);
}

start();
