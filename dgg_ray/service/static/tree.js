// The stage tree as SVG: a column for each number of trained tasks, a stage once however many runs share it.

import { get, unavailable } from "./api.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 150;
const HEIGHT = 22;
const MOST = 1500; // stages that are drawn; the list has more

function element(name, attributes, text) {
  const found = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  if (text !== undefined) found.textContent = text;
  return found;
}

/** Give every stage a row: a leaf the next one, a parent the middle of its children. */
function rowsOf(nodes) {
  const children = new Map(nodes.map((node) => [node.id, []]));
  const roots = [];
  for (const node of nodes) (children.get(node.parent) ?? roots).push(node);
  const rows = new Map();
  let next = 0;
  const place = (node) => {
    const own = children.get(node.id);
    own.forEach(place);
    rows.set(node.id, own.length ? (rows.get(own[0].id) + rows.get(own.at(-1).id)) / 2 : next++);
  };
  roots.forEach(place);
  return { rows, count: next };
}

/** Draw the tree of the page, if it has one. */
export async function showTree() {
  const place = document.querySelector("[data-tree]");
  if (!place) return;
  try {
    draw(place, await get(place.dataset.url));
  } catch (error) {
    unavailable(place, error, showTree);
  }
}

function draw(place, view) {
  const nodes = view.nodes.filter((node) => !node.count).slice(0, MOST);
  if (!nodes.length) return;
  const { rows, count } = rowsOf(nodes);
  const depths = 1 + Math.max(...nodes.map((node) => node.depth));
  const x = (node) => 14 + node.depth * WIDTH;
  const y = (node) => 34 + rows.get(node.id) * HEIGHT;
  const svg = element("svg", { width: 40 + depths * WIDTH, height: 50 + count * HEIGHT, "aria-hidden": "true" });
  for (let depth = 0; depth < depths; depth++) svg.append(element("text", { x: 8 + depth * WIDTH, y: 14, class: "column" }, depth ? `after ${depth}` : "first task"));
  const byId = new Map(nodes.map((node) => [node.id, node]));
  for (const node of nodes) {
    const parent = byId.get(node.parent);
    if (!parent) continue;
    const middle = (x(parent) + x(node)) / 2;
    svg.append(element("path", { class: "edge", d: `M${x(parent)} ${y(parent)}C${middle} ${y(parent)} ${middle} ${y(node)} ${x(node)} ${y(node)}`, "stroke-width": Math.min(5, 0.8 + Math.log2(1 + node.shared) / 2) }));
  }
  for (const node of nodes) {
    const group = element("g", {});
    group.append(element("title", {}, `${node.task}, seed ${node.seed}: ${node.state}, in ${node.shared} runs${node.error ? `; ${node.error}` : ""}`));
    group.append(element("circle", { class: `stage ${node.state}`, cx: x(node), cy: y(node), r: Math.min(9, 4 + Math.log2(1 + node.shared)) }));
    group.append(element("text", { x: x(node) + 12, y: y(node) + 4 }, node.step === null ? node.task : `${node.task} ${node.step}/${node.steps}`));
    svg.append(group);
  }
  place.replaceChildren(svg);
  const single = view.nodes.filter((node) => !node.count).length; // `note` on the page speaks of the others
  if (single > nodes.length) {
    const note = document.createElement("p");
    note.className = "quiet";
    note.textContent = `The first ${nodes.length} of ${single} stages are drawn.`;
    place.append(note);
  }
}
