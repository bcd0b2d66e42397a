// The pages of one study, of its examples, and of studies side by side: charts, the stage tree, tables, the log.

import { get } from "./api.js";
import { drawTree } from "./tree.js";
import { drawCharts } from "./charts.js";

const READ_AGAIN_MS = 2500;
const LOG_MS = 3000;

/** What is still being read: ask again, once the page was seen for a moment. */
function waitForResults() {
  if (document.querySelector("[data-reading]")) setTimeout(() => location.reload(), READ_AGAIN_MS);
}

/** Say that there are new results rather than let the page jump. */
function watchResults() {
  const head = document.getElementById("head");
  if (!head) return;
  const { done, state } = head.dataset;
  document.addEventListener("study", ({ detail: card }) => {
    const more = (card.progress?.done ?? 0) > Number(done) || (card.state !== state && card.state !== "stopping");
    if (more) document.getElementById("fresh").hidden = false;
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
      const value = (row) => {
        const cell = row.cells[button.dataset.sort];
        const number = Number(cell.dataset.value ?? cell.textContent);
        return Number.isNaN(number) ? cell.textContent.trim() : number;
      };
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compareValues(value(a), value(b)) * (up ? 1 : -1));
      table.tBodies[0].append(...rows);
    });
}

const compareValues = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));

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
  setInterval(async () => {
    const over = ["finished", "stopped", "failed"].includes(document.getElementById("head").dataset.state);
    if (document.hidden || over) return;
    const response = await fetch(log.dataset.log);
    if (!response.ok) return;
    const stay = atEnd();
    log.firstElementChild.textContent = (await response.text()) || "Nothing was printed yet.";
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

async function start() {
  waitForResults();
  watchResults();
  sortTables();
  filterTables();
  followLog();
  turnPages();
  for (const form of document.querySelectorAll("[data-submits]"))
    form.addEventListener("change", (change) => change.target.matches("select") && form.requestSubmit());
  const tree = document.querySelector("[data-tree]");
  if (tree) drawTree(tree, await get(tree.dataset.url));
  await drawCharts();
}

start();
