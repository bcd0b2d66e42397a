// The page on which a study is written: colours, faults and suggestions while one types; plan, strategies, submit.

import { attempt, get, post, call, Problem } from "./api.js";
import { Chooser, explained, suggestions } from "./editor_completion.js";
import { coloured, entryAt, read, steps } from "./editor_yaml.js";
import { ago } from "./page.js";

const QUIET_MS = 450; // without a key before the text is checked
const COLOURED = 60000; // characters; longer texts are one colour, without suggestions
const form = document.getElementById("study");
const area = document.getElementById("text");
const editor = document.getElementById("editor");
const paper = editor.querySelector("pre");
const gutter = editor.querySelector(".gutter");
const help = document.getElementById("key-help");
const title = document.getElementById("verdict");
const byId = (id) => document.getElementById(id);
const DRAFT = `dgg_ray_draft_${form.dataset.user}`;
let schema = null, faults = [], timer = 0, asked = null, leaving = false;

function element(tag, properties = {}, ...inside) {
  const found = Object.assign(document.createElement(tag), properties);
  found.append(...inside);
  return found;
}

const say = (text) => (byId("say").textContent = text);

// -- the text ------------------------------------------------------------------------------------------

/** Put text in place of a range as if it were typed, so that it can be undone. */
function type(text, start, end) {
  area.focus();
  area.setSelectionRange(start, end);
  if (!document.execCommand("insertText", false, text)) area.setRangeText(text, start, end, "end");
}

/** Where a fault is: [start, end] in the text; null for one without a place. */
function place(fault, entries) {
  const path = steps(fault.path);
  const entry = entryAt(entries, path);
  const line = fault.file ? 0 : fault.line || entry?.line || 0;
  if (!line) return null;
  const rows = area.value.split("\n");
  const start = rows.slice(0, line - 1).reduce((sum, row) => sum + row.length + 1, 0);
  const row = rows[line - 1] ?? "";
  const wrong = fault.found.replace(/^['"]|['"]$/g, "") || String(path.at(-1) ?? "");
  const from = entry?.line === line ? (fault.found ? entry.value[0] : (entry.key ?? entry.value)[0]) : start;
  const at = wrong ? area.value.indexOf(wrong, from) : -1;
  if (at >= from && at + wrong.length <= start + row.length) return { line, range: [at, at + wrong.length], exact: true };
  return { line, range: [start + row.search(/\S|$/), start + row.length], exact: false };
}

function draw() {
  const text = area.value, wrong = faults.filter((fault) => fault.place).map((fault) => fault.place.range);
  paper.replaceChildren(text.length < COLOURED ? coloured(text, wrong) : text, "\n");
  const bad = new Set(faults.map((fault) => fault.place?.line));
  const count = text.split("\n").length;
  if (gutter.dataset.drawn === `${count} ${[...bad]}`) return;
  gutter.dataset.drawn = `${count} ${[...bad]}`;
  gutter.replaceChildren(...Array.from({ length: count }, (_, i) => element("span", { className: bad.has(i + 1) ? "bad" : "" }, String(i + 1))));
}

function explain() {
  const found = schema && area.value.length < COLOURED && explained(schema, area.value, area.selectionStart);
  const said = found ? `${found.path} ${found.about}` : "";
  if (help.dataset.said === said) return;
  help.dataset.said = said;
  help.replaceChildren(...(found ? [element("code", {}, found.path), ` ${found.about}`, found.detail ? element("span", { className: "quiet" }, ` (${found.detail})`) : ""] : ["\u00a0"]));
}

// -- faults --------------------------------------------------------------------------------------------

async function check() {
  asked?.abort();
  const own = (asked = new AbortController());
  const verdict = title.parentElement, text = area.value;
  verdict.setAttribute("aria-busy", "true");
  try {
    const found = await call("POST", "/api/v1/validate", { text }, { signal: own.signal });
    if (text === area.value) tell(found.faults, found.warnings);
  } catch (error) {
    if (error.name !== "AbortError") title.textContent = error.message;
  } finally {
    if (asked === own) verdict.removeAttribute("aria-busy"); // else another check runs
  }
}

function tell(found, warnings = []) {
  const { entries } = read(area.value);
  faults = found.map((fault) => ({ ...fault, place: place(fault, entries) }));
  const said = faults.length === 0 ? "No faults" : faults.length === 1 ? "1 fault" : `${faults.length} faults`;
  if (title.textContent !== said) say(said);
  title.textContent = said;
  title.className = faults.length ? "bad" : "good";
  area.setAttribute("aria-invalid", String(faults.length > 0));
  byId("faults").replaceChildren(...faults.map(row));
  byId("warnings").replaceChildren(...warnings.map((warning) => element("li", {}, warning)));
  if (byId("submit")) byId("submit").disabled = faults.length > 0;
  draw();
}

function row(fault) {
  const where = fault.place;
  const line = where ? element("button", { type: "button", className: "line", onclick: () => jump(where) }, `line ${where.line}`) : element("span", { className: "line" }, fault.file || "study");
  const words = element("span", {}, element("code", {}, fault.path), ` ${fault.rule}${fault.found ? `, got ${fault.found}` : ""} `);
  if (fault.near && where?.exact) words.append(element("button", { type: "button", className: "button small", onclick: () => type(fault.near, ...where.range) }, `Use ${fault.near}`));
  else if (fault.near) words.append(`(did you mean ${fault.near}?)`);
  return element("li", {}, line, words);
}

function jump({ range }) {
  area.focus();
  area.setSelectionRange(...range);
  editor.scrollTop = Math.max(0, caretPlace(range[0]).top - editor.clientHeight / 2);
}

// -- suggestions ---------------------------------------------------------------------------------------

const chooser = new Chooser(area, byId("choices"), (choice) => type(choice.insert, chooser.start, Math.max(chooser.end, area.selectionStart)));

/** Where a place of the text is below the start of the paper, in pixels. */
function caretPlace(offset) {
  const walker = document.createTreeWalker(paper, NodeFilter.SHOW_TEXT);
  let node = walker.nextNode();
  for (; node && offset > node.length; node = walker.nextNode()) offset -= node.length;
  const range = document.createRange();
  range.setStart(node ?? paper, node ? offset : 0);
  const box = range.getBoundingClientRect(), origin = paper.getBoundingClientRect();
  return { left: box.left - origin.left, top: box.bottom - origin.top };
}

function suggest(wanted) {
  const caret = area.selectionStart;
  if (!schema || area.value.length >= COLOURED || caret !== area.selectionEnd) return chooser.hide();
  const { choices, start, end } = suggestions(schema, area.value, caret);
  const typed = area.value.slice(start, caret);
  if (!wanted && !typed && !/[:{[,] $|- $/.test(area.value.slice(0, caret))) return chooser.hide();
  Object.assign(chooser, { start, end });
  const at = caretPlace(start), outer = byId("choices").parentElement.getBoundingClientRect(), origin = paper.getBoundingClientRect();
  chooser.show(choices, { left: at.left + origin.left - outer.left, top: at.top + origin.top - outer.top + 4 });
  if (choices.length) say(`${choices.length} suggestions; Enter takes ${choices[0].name}`);
  else if (wanted) say("No suggestions here");
}

area.addEventListener("keydown", (press) => {
  const left = leaving;
  leaving = false;
  const step = { ArrowDown: 1, ArrowUp: -1 }[press.key];
  if (press.isComposing || press.altKey || press.metaKey) return;
  if (press.ctrlKey) {
    if (press.code === "Space") suggest(true);
    else return;
  } else if (chooser.open && step) chooser.move(step);
  else if (chooser.open && (press.key === "Enter" || (press.key === "Tab" && !press.shiftKey))) chooser.accept();
  else if (press.key === "Escape") {
    if (!chooser.open) say("Tab now leaves the editor");
    leaving = !chooser.open;
    chooser.hide();
  } else if (press.key === "Tab" && !press.shiftKey && !left) indent();
  else if (press.key === "Enter" && !press.shiftKey) newLine();
  else return;
  press.preventDefault();
});

function indent() {
  const [start, end] = [area.selectionStart, area.selectionEnd];
  if (start === end) return type("  ", start, end);
  const from = area.value.lastIndexOf("\n", start - 1) + 1;
  type(area.value.slice(from, end).replace(/^/gm, "  "), from, end);
}

function newLine() {
  const before = area.value.slice(0, area.selectionStart).split("\n").pop();
  type(`\n${before.match(/^ */)[0]}${/:\s*$/.test(before) ? "  " : ""}`, area.selectionStart, area.selectionEnd);
}

// -- drafts --------------------------------------------------------------------------------------------

/** Do something with what the browser keeps; null where it keeps nothing, as in a private window. */
function kept(act) {
  try {
    return act(localStorage);
  } catch {
    return null;
  }
}

const dropDraft = () => kept((storage) => storage.removeItem(DRAFT));

function keepDraft() {
  kept((storage) => storage.setItem(DRAFT, JSON.stringify({ text: area.value, at: Date.now() / 1000 })));
}

function offerDraft() {
  const draft = kept((storage) => JSON.parse(storage.getItem(DRAFT)));
  if (!draft || draft.text === area.value) return;
  byId("draft-age").textContent = ago(draft.at);
  byId("draft-name").textContent = /^name:\s*(\S+)/m.exec(draft.text)?.[1] ?? "without a name";
  byId("draft").hidden = false;
  byId("draft-take").addEventListener("click", () => {
    type(draft.text, 0, area.value.length);
    area.setSelectionRange(0, 0);
    byId("draft").hidden = true;
  });
  byId("draft-drop").addEventListener("click", () => {
    dropDraft();
    byId("draft").hidden = true;
    area.focus();
  });
}

// -- plan, strategies, submit --------------------------------------------------------------------------

/** Let the server do what a button says, and take its part of the page over. */
async function plan() {
  if (faults.length) throw new Problem({ detail: "Mend the study's faults first; then it can be planned." });
  const body = new URLSearchParams([...new FormData(form), ["act", "plan"]]);
  byId("plan").setAttribute("aria-busy", "true");
  byId("plan").classList.remove("stale");
  const answer = await fetch("/new", { method: "POST", body }).finally(() => byId("plan").removeAttribute("aria-busy"));
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (answer.redirected || !page.getElementById("plan")) throw new Problem({ detail: page.querySelector("main p")?.textContent ?? "Log in again" });
  if (answer.ok) {
    byId("plan").replaceChildren(...page.getElementById("plan").childNodes);
    say(`Planned. ${[...byId("plan").querySelectorAll("dl > div")].map((part) => part.innerText.replace("\n", ": ")).join("; ")}`);
  } else {
    const refusals = [...page.querySelectorAll("#faults li > :last-child")].map((words) => words.textContent);
    byId("plan").replaceChildren(...refusals.map((words) => element("p", { className: "error" }, words)));
    say(refusals.join(". "));
  }
}

async function submit() {
  clearTimeout(timer); // a check that ends later would take the refusal away
  asked?.abort();
  const priority = Number(form.elements.priority.value || 0);
  try {
    const { name } = await post("/api/v1/studies", { text: area.value, priority });
    dropDraft();
    location.assign(`/studies/${encodeURIComponent(name)}`);
  } catch (error) {
    if (!(error instanceof Problem) || ![409, 422].includes(error.status)) throw error;
    const refused = error.faults.length ? error.faults : [{ path: "name", rule: error.message, found: "", near: "" }];
    tell(refused);
    if (faults[0].place) jump(faults[0].place);
    say(faults.map((fault) => `${fault.path} ${fault.rule}`).join(". "));
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const button = event.submitter, act = button?.value;
  attempt(act === "submit" ? submit : act === "plan" ? plan : check, act === "check" ? undefined : button);
});

async function showStrategies() {
  const { items } = await get("/api/v1/strategies");
  const rows = items.map((strategy) => {
    const parameters = strategy.parameters.map(({ name, about, default: usual }) =>
      element("div", {}, element("dt", {}, element("code", {}, name), usual === null || usual === undefined ? "" : element("span", { className: "quiet" }, ` ${JSON.stringify(usual)}`)), element("dd", {}, about)));
    const use = element("button", { type: "button", className: "button small", ariaLabel: `Use ${strategy.name}`, onclick: () => useStrategy(strategy.name) }, "Use it");
    const summary = element("summary", {}, element("b", {}, strategy.name), element("span", { className: "tag" }, strategy.known_from || "own plug-in"), element("span", { className: "about" }, strategy.about));
    return element("li", {}, element("details", {}, summary, use, parameters.length ? element("dl", {}, ...parameters) : element("p", { className: "quiet small" }, "It has no settings.")));
  });
  byId("strategy-list").replaceChildren(...rows);
  byId("strategies").hidden = false;
  byId("strategy-search").addEventListener("input", ({ target }) => {
    const wanted = target.value.trim().toLowerCase();
    rows.forEach((item, i) => (item.hidden = !`${items[i].name} ${items[i].about} ${items[i].known_from}`.toLowerCase().includes(wanted)));
    byId("strategy-count").textContent = `${rows.filter((item) => !item.hidden).length} strategies`;
  });
}

/** Put a `strategy:` line in, in place of the one there is. */
function useStrategy(name) {
  const text = area.value, line = `strategy: {name: ${name}}\n`;
  const found = /^strategy:.*\n?(?:(?:[ \t]+.*|- .*)\n?)*/m.exec(text);
  if (found) type(line, found.index, found.index + found[0].length);
  else type(`${text && !text.endsWith("\n") ? "\n" : ""}${line}`, text.length, text.length);
  area.setSelectionRange(area.selectionStart - 2, area.selectionStart - 2);
  say(`strategy is now ${name}`);
}

// -- start ---------------------------------------------------------------------------------------------

area.addEventListener("input", (event) => {
  const { entries } = read(area.value);
  faults = faults.map((fault) => ({ ...fault, place: place(fault, entries) }));
  draw();
  byId("plan").classList.toggle("stale", Boolean(byId("plan").querySelector("dl")));
  clearTimeout(timer);
  timer = setTimeout(check, QUIET_MS);
  if (event.inputType !== "historyUndo" && event.inputType !== "insertFromPaste") suggest(false);
  keepDraft();
});
area.addEventListener("blur", () => chooser.hide());
document.addEventListener("selectionchange", () => document.activeElement === area && explain());
for (const id of ["editor-hint", "key-help"]) byId(id).hidden = false;
byId("check").hidden = true;
editor.classList.add("live");
area.removeAttribute("rows");
area.setAttribute("aria-autocomplete", "list");
draw();
offerDraft();
check();
attempt(async () => {
  schema = await get("/api/v1/schema");
  await showStrategies();
});
