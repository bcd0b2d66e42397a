// What may stand where the caret is, from the study's JSON Schema, and the list in which one chooses.

import { read } from "./editor_yaml.js";

const SEARCHED = ["strategy", "adapter", "training"]; // sections whose settings `search.space` may name
const KINDS = { integer: "whole number", number: "number", string: "text", boolean: "true or false", array: "list", object: "section" };
const MOST = 60;

/** The schema of a study, asked about one text. */
class Place {
  constructor(schema, entries) {
    Object.assign(this, { schema, entries });
  }

  /** The forms that a value may have; each keeps what is said of the value where it says nothing itself. */
  forms(node) {
    const named = node.$ref ? this.schema.$defs[node.$ref.split("/").pop()] : node;
    const inner = named.anyOf ?? named.oneOf;
    return inner ? inner.flatMap((form) => this.forms({ description: named.description, ...form })) : [named];
  }

  /** What is written beside each other at a path: key → text. */
  written(text, path) {
    const inside = this.entries.filter((e) => e.key && e.path.length === path.length + 1 && path.every((step, i) => step === e.path[i]));
    const alone = this.entries.find((e) => e.key && e.path.join("\n") === path.join("\n"));
    const words = alone ? text.slice(...alone.value) : "";
    if (!inside.length && /^\w+$/.test(words)) return new Map([["name", words]]); // `strategy: dgg` for `strategy: {name: dgg}`
    return new Map(inside.map((entry) => [entry.path.at(-1), text.slice(...entry.value).replace(/^["']|["']$/g, "")]));
  }

  /** The nodes at a path, of the forms that what is written fits; the value of `skip` is not looked at. */
  at(text, path, skip = null) {
    let nodes = [this.schema];
    path.forEach((step, i) => {
      nodes = this.fitting(text, path.slice(0, i), nodes, i === path.length - 1 ? skip : null).flatMap((form) =>
        typeof step === "number" ? (form.items ?? []) : (form.properties?.[step] ?? (form.additionalProperties || [])));
    });
    return nodes;
  }

  fitting(text, path, nodes, skip = null) {
    const written = this.written(text, path);
    return nodes.flatMap((node) => this.forms(node)).filter((form) =>
      Object.entries(form.properties ?? {}).every(([key, { const: only, pattern }]) => {
        const value = key === skip ? undefined : written.get(key);
        return !value || ((only === undefined || only === value) && (!pattern || new RegExp(pattern).test(value)));
      }));
  }

  keys(text, path, flow, indent) {
    const present = this.written(text, path);
    const found = new Map();
    for (const form of this.fitting(text, path, this.at(text, path)))
      for (const [key, node] of Object.entries(form.properties ?? {}))
        if (!present.has(key) && !found.has(key)) found.set(key, this.keyChoice(key, node, flow, indent, path));
    if (path.join(".") === "search.space")
      for (const section of SEARCHED)
        for (const form of this.fitting(text, [section], this.at(text, [section])))
          for (const [key, node] of Object.entries(form.properties ?? {}))
            if (!present.has(`${section}.${key}`)) found.set(`${section}.${key}`, this.keyChoice(`${section}.${key}`, node, true, indent, [section]));
    return [...found.values()];
  }

  keyChoice(key, node, flow, indent, path) {
    const forms = this.forms(node);
    const what = key.endsWith("name") ? path.at(-1) : key;
    const deep = !flow && forms.every((form) => form.type === "object" && form.properties);
    return { name: key, insert: deep ? `${key}:\n${" ".repeat(indent + 2)}` : `${key}: `, about: node.const ? `Which ${what}; the other settings depend on it.` : (node.description ?? ""), detail: facts(node, forms) };
  }

  values(text, path) {
    const nodes = path.join(".").startsWith("protocol.baselines.") ? this.at(text, ["strategy"]) : this.at(text, path, path.at(-1));
    const found = new Map();
    for (const form of nodes.flatMap((node) => this.forms(node)))
      for (const value of form.enum ?? (form.const === undefined ? (form.type === "boolean" ? [true, false] : []) : [form.const])) {
        const named = nodes.flatMap((node) => this.forms(node)).find((other) => other.properties?.name?.const === value);
        found.set(value, { name: String(value), insert: String(value), about: named?.description ?? (form.const && form.description) ?? "", detail: value === form.default ? "default" : "" });
      }
    return [...found.values()];
  }
}

function facts(node, forms) {
  const kinds = [...new Set(forms.map((form) => (form.enum ? "one of a few" : KINDS[form.type])).filter(Boolean))];
  if (kinds[0] === "one of a few") kinds.splice(1);
  const low = forms.map((form) => form.minimum).find((value) => value !== undefined);
  const high = forms.map((form) => form.maximum).find((value) => value !== undefined);
  const bounds = [low === undefined ? "" : `from ${low}`, high === undefined ? "" : `to ${high}`].filter(Boolean).join(" ");
  const usual = node.default === undefined || node.default === null ? "" : `default ${JSON.stringify(node.default).replaceAll('"', "")}`;
  return [[kinds.join(" or "), bounds].filter(Boolean).join(" "), usual].filter(Boolean).join(", ");
}

/** What may stand at the caret: {choices: [{name, insert, about, detail}], start, end}. */
export function suggestions(schema, text, caret) {
  const here = read(text.slice(0, caret));
  const place = new Place(schema, read(text).entries);
  const end = caret + /^[\w.-]*/.exec(text.slice(caret))[0].length;
  const found = { choices: [], start: here.start, end };
  const word = text.slice(here.start, caret).toLowerCase();
  if (here.comment || /["'{[\n]/.test(word)) return found;
  const listed = typeof here.path.at(-1) === "number";
  let all = here.key === null && !(listed && here.flow && text[here.start - 1] === "[") ? place.keys(text, here.path, here.flow, listed ? here.start - text.lastIndexOf("\n", here.start - 1) - 1 : here.indent) : [];
  if (here.key !== null || listed) all = all.concat(place.values(text, here.key === null ? here.path : [...here.path, here.key]));
  if (/^\s*:/.test(text.slice(end))) all = all.map((choice) => ({ ...choice, insert: choice.name }));
  const rank = ({ name }) => (name.toLowerCase().startsWith(word) ? 0 : name.toLowerCase().includes(word) ? 1 : 2);
  all = all.filter((choice) => rank(choice) < 2).sort((a, b) => rank(a) - rank(b));
  if (!(all.length === 1 && all[0].name.toLowerCase() === word)) found.choices = all.slice(0, MOST);
  return found;
}

/** What the key under the caret means: {path, about, detail}; null where there is none. */
export function explained(schema, text, caret) {
  const { entries } = read(text);
  const entry = entries.filter((e) => e.key && e.key[0] <= caret && caret <= Math.max(e.value[1], e.key[1] + 1)).pop();
  if (!entry) return null;
  const searched = entry.path.length === 3 && entry.path[1] === "space" ? entry.path[2].split(".") : entry.path;
  const place = new Place(schema, entries);
  const node = place.at(text, searched).find(({ description }) => description);
  return node ? { path: entry.path.filter((step) => typeof step === "string").join("."), about: node.description, detail: facts(node, place.forms(node)) } : null;
}

/** A list of choices under the caret; the focus stays in the text. */
export class Chooser {
  constructor(area, list, take) {
    Object.assign(this, { area, list, take, choices: [], at: 0 });
    list.addEventListener("pointerdown", (press) => {
      press.preventDefault(); // the text keeps the focus
      const option = press.target.closest("[role=option]");
      if (option) this.accept([...list.children].indexOf(option));
    });
  }

  get open() {
    return !this.list.hidden;
  }

  show(choices, place) {
    this.choices = choices;
    if (!choices.length) return this.hide();
    this.list.replaceChildren(...choices.map(({ name, about, detail }, i) => {
      const option = Object.assign(document.createElement("li"), { id: `choice-${i}` });
      option.setAttribute("role", "option");
      for (const [kind, words] of [["name", name], ["detail", detail], ["about", about]])
        if (words) option.append(Object.assign(document.createElement("span"), { className: kind, textContent: words }), " ");
      return option;
    }));
    this.list.hidden = false;
    const space = this.list.offsetParent.clientWidth - this.list.offsetWidth;
    this.list.style.left = `${Math.max(0, Math.min(place.left, space))}px`; // through the CSSOM, which the policy allows
    this.list.style.top = `${place.top}px`;
    this.area.setAttribute("aria-controls", this.list.id);
    return this.move(-this.at);
  }

  move(by) {
    this.at = (this.at + by + this.choices.length) % this.choices.length;
    [...this.list.children].forEach((option, i) => option.setAttribute("aria-selected", String(i === this.at)));
    this.list.children[this.at].scrollIntoView({ block: "nearest" });
    this.area.setAttribute("aria-activedescendant", `choice-${this.at}`);
  }

  accept(at = this.at) {
    const choice = this.choices[at];
    this.hide();
    this.take(choice);
  }

  hide() {
    this.list.hidden = true;
    this.at = 0;
    this.area.removeAttribute("aria-activedescendant");
    this.area.removeAttribute("aria-controls");
  }
}
