// Interactive charts of the curves, drawn with Plotly from the same numbers as the report's figures.

import { get, Problem, unavailable } from "./api.js";
import { colours } from "./theme.js";

const SYMBOLS = ["circle", "square", "diamond", "cross", "x", "triangle-up", "star", "pentagon"];
const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], showLink: false };

const percent = (value) => (value === null || value === undefined ? null : 100 * value);
const shown = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1));

const series = () => colours(...SYMBOLS.map((_, i) => `series-${i + 1}`));

/** Plotly's look in the page's colours. */
function look(titleX, titleY) {
  const [ink, quiet, line, surface] = colours("ink", "quiet", "line", "surface");
  const axis = (title) => ({ title: { text: title, font: { size: 13 } }, gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line, automargin: true });
  return {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: ink },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 56, r: 16, t: 16, b: 56 },
    xaxis: axis(titleX), yaxis: axis(titleY), hoverlabel: { bgcolor: surface, font: { color: ink }, bordercolor: quiet },
    legend: { orientation: "h", y: -0.2, font: { color: ink } }, hovermode: "closest", colorway: series(),
  };
}

function bounds(rows, mean, low, high) {
  if (!rows.some((row) => row[low] !== null && row[low] !== undefined)) return undefined;
  const gap = (a, b) => (a === null || b === null || a === undefined || b === undefined ? 0 : 100 * Math.max(0, a - b));
  return { type: "data", symmetric: false, array: rows.map((row) => gap(row[high], row[mean])), arrayminus: rows.map((row) => gap(row[mean], row[low])), thickness: 1.2, width: 3 };
}

function stabilityPlasticity(place, { stability_plasticity: found }) {
  const groups = [
    ["on the blocks of the search", (p) => p.kind === "setting", { size: 6, opacity: 0.8 }],
    ["compared on held-out blocks", (p) => p.kind === "compared", { size: 10, symbol: "diamond" }],
    ["joint training", (p) => p.kind === "reference", { size: 10, symbol: "star" }],
  ];
  const traces = found.curves.map((curve) => ({ name: `α along ${curve.label || "the curve"}`, mode: "lines", x: curve.points.map((p) => percent(p.x)), y: curve.points.map((p) => percent(p.y)), line: { width: 1.5, dash: "dot" }, hoverinfo: "skip" }));
  for (const [name, belongs, marker] of groups) {
    const rows = found.points.filter((p) => belongs(p) && p.x !== null && p.y !== null);
    if (!rows.length) continue;
    const compared = marker.symbol !== undefined;
    traces.push({
      name, mode: compared && rows.length <= 9 ? "markers+text" : "markers", marker, x: rows.map((p) => percent(p.x)), y: rows.map((p) => percent(p.y)),
      error_x: compared ? bounds(rows, "x", "x_low", "x_high") : undefined, error_y: compared ? bounds(rows, "y", "y_low", "y_high") : undefined,
      text: rows.map((p) => p.label), textposition: "top center",
      hovertemplate: rows.map((p) => `<b>${escape(p.label)}</b>${p.chosen ? " (chosen)" : ""}<br>stability ${shown(p.x)} %<br>plasticity ${shown(p.y)} %<extra></extra>`),
    });
  }
  const front = found.points.filter((p) => p.front && p.x !== null && p.y !== null).sort((a, b) => a.x - b.x);
  if (front.length > 1) traces.push({ name: "Pareto front", mode: "lines", x: front.map((p) => percent(p.x)), y: front.map((p) => percent(p.y)), line: { width: 1, dash: "dash" }, hoverinfo: "skip" });
  draw(place, traces, look(`${found.x_label}, %`, `${found.y_label}, %`));
  table(place, ["Method or setting", "Stability, %", "Plasticity, %", "On the front"],
    found.points.map((p) => [p.label, `${shown(p.x)}${interval(p.x_low, p.x_high)}`, `${shown(p.y)}${interval(p.y_low, p.y_high)}`, p.front ? "yes" : ""]));
}

function learning(place, view) {
  const lines = (view.learning ?? view.curves.learning).filter((line) => line.points.length);
  const hues = series();
  const traces = lines.map((line, i) => ({
    name: line.label ?? line.name, mode: line.points.length > 1 ? "lines+markers" : "markers", x: line.points.map((p) => p.tasks), y: line.points.map((p) => percent(p.score)),
    error_y: bounds(line.points, "score", "low", "high"), line: { color: hues[i % hues.length], width: 2 }, marker: { symbol: SYMBOLS[i % SYMBOLS.length], size: 8, color: hues[i % hues.length] },
    hovertemplate: `<b>${escape(line.label ?? line.name)}</b><br>after %{x} tasks: %{y:.1f} %<extra></extra>`,
  }));
  const layout = look("tasks trained", "mean score on them, %");
  layout.xaxis.dtick = 1;
  draw(place, traces, layout);
  table(place, ["Method", "Tasks trained", "Mean score, %"], lines.flatMap((line) => line.points.map((p) => [line.label ?? line.name, p.tasks, `${shown(p.score)}${interval(p.low, p.high)}`])));
}

function alpha(place, view) {
  if (!view.alpha.length) return;
  place.closest("[data-alpha]").hidden = false;
  const figures = view.alpha.map((effect) => {
    const box = document.createElement("div");
    const figure = document.createElement("figure");
    figure.className = "chart";
    const text = document.createElement("p");
    text.textContent = effect.text ?? "";
    box.append(figure, text);
    place.append(box);
    return figure;
  });
  for (const [i, effect] of view.alpha.entries()) { // now that each has its place
    const layout = look(`α of ${effect.task}`, "gain in the final score, points");
    draw(figures[i], [{ name: effect.task, mode: "lines+markers", x: effect.points.map((p) => p.alpha), y: effect.points.map((p) => percent(p.mean)), error_y: bounds(effect.points, "mean", "low", "high"), line: { width: 2 }, hovertemplate: "α = %{x}: %{y:.1f} points<extra></extra>" }], { ...layout, showlegend: false });
  }
}

const CHARTS = { stability_plasticity: stabilityPlasticity, learning, alpha };
const sizes = new ResizeObserver((changes) => {
  for (const { target } of changes) if (target.isConnected && target.clientWidth) window.Plotly.Plots.resize(target);
});

function draw(place, traces, layout) {
  window.Plotly.newPlot(place, traces, layout, CONFIG);
  sizes.observe(place);
}

/** Draw all charts of the page; again where the colours change. */
export async function drawCharts() {
  const groups = new Map(); // address of a view → places that show it
  for (const place of document.querySelectorAll("[data-chart]"))
    groups.set(place.dataset.url, [...(groups.get(place.dataset.url) ?? []), place]);
  const drawn = new Map();
  document.addEventListener("themechange", () => drawn.forEach((again) => again()));
  await Promise.all([...groups].map(([url, places]) => drawGroup(url, places, drawn)));
}

async function drawGroup(url, places, drawn) {
  let view;
  try {
    if (!window.Plotly) throw new Problem({ detail: "the script that draws was not loaded." });
    view = await get(url);
  } catch (error) {
    const again = () => (window.Plotly ? drawGroup(url, places, drawn) : location.reload());
    for (const place of places) unavailable(place, error, again);
    return;
  }
  for (const place of places) {
    const again = () => {
      place.replaceChildren();
      CHARTS[place.dataset.chart](place, view);
    };
    drawn.set(place, again);
    again();
  }
}

const interval = (low, high) => (low === null || low === undefined ? "" : ` (${shown(low)} to ${shown(high)})`);
const escape = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

/** The chart's numbers as a table, for who cannot see or hover. */
function table(place, headings, rows) {
  const target = document.querySelector(`[data-chart-table="${place.dataset.chart}"]`);
  if (!target) return;
  const found = document.createElement("table");
  const head = found.createTHead().insertRow();
  for (const heading of headings) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = heading;
    head.append(cell);
  }
  const body = found.createTBody();
  for (const values of rows.slice(0, 300)) {
    const row = body.insertRow();
    for (const value of values) row.insertCell().textContent = value;
  }
  const scroll = document.createElement("div");
  scroll.className = "wide-table";
  scroll.append(found);
  target.replaceChildren(scroll);
}
