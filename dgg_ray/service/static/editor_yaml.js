// YAML while it is being written: where each entry stands, what the caret is in, and colours. It reads what a
// study needs (mappings, lists, flow collections, plain and quoted text, comments) and survives what is unfinished.

const KEY = /^(?:"([^"]*)"|'([^']*)'|([^\s#{}\[\],:'"&*!|>][^{}\[\],:#]*?))\s*:(?=\s|$)/;
const ITEM = /^-(?=\s|$)/;

/**
 * Read a text up to its end.
 * entries: [{path, line, key: [start, end] or null, value: [start, end]}]; lines count from 1.
 * path: of the collection that the end is in; key: the one whose value is being written, or null; start: where the
 * word at the end begins; flow: whether that is inside braces or brackets; indent: of the last line.
 */
export function read(text) {
  const entries = [];
  let stack = []; // {indent, step} of blocks; {open, step} of flow collections
  let line = 0, offset = 0, state = { key: null, start: 0, flow: false, indent: 0, comment: false };
  const path = () => stack.filter((frame) => frame.step !== null).map((frame) => frame.step);
  const inFlow = () => stack.length > 0 && stack.at(-1).open;

  for (const row of text.split("\n")) {
    line += 1;
    const body = row.replace(/(^|\s)#.*$/, (_, before) => before);
    let at = body.length - body.trimStart().length;
    state = { key: null, start: offset + at, flow: false, indent: at, comment: body.length < row.length };
    if (!inFlow() && (body.trim() || at)) at = block(body, at);
    if (inFlow() || /[\[{]/.test(body[at] ?? "")) flow(body, at);
    offset += row.length + 1;
  }
  if (!stack.some((frame) => frame.open || frame.line === line)) stack = stack.filter((frame) => frame.indent < state.indent);
  const steps = path();
  if (state.key !== null && steps.at(-1) === state.key) steps.pop();
  return { ...state, flow: Boolean(inFlow()), path: steps, entries };

  /** Read the dashes and the key of a line; return where its value starts. */
  function block(body, at) {
    for (;;) {
      const rest = body.slice(at);
      const dash = ITEM.exec(rest), key = dash ? null : KEY.exec(rest);
      if (!dash && !key) break;
      let last = null;
      while (stack.length && (stack.at(-1).indent > at || (stack.at(-1).indent === at && (key || stack.at(-1).item)))) last = stack.pop();
      const width = dash ? rest.length - rest.slice(1).trimStart().length : key[0].length;
      if (dash) stack.push({ indent: at, item: true, step: last?.item && last.indent === at ? last.step + 1 : 0, line });
      else stack.push({ indent: at, step: key[1] ?? key[2] ?? key[3], line });
      const from = offset + at;
      at += dash ? width : key[0].length;
      at += body.slice(at).length - body.slice(at).trimStart().length;
      entries.push({ path: path(), line, key: dash ? null : [from, from + key[0].replace(/\s*:$/, "").length], value: [offset + at, offset + body.trimEnd().length] });
      state = { ...state, key: dash ? null : stack.at(-1).step, start: offset + at };
      if (key) break;
    }
    return at;
  }

  /** Read flow collections from a place of a line to its end. */
  function flow(body, at) {
    let word = at; // where the word at hand begins
    const end = (to) => {
      const frame = stack.at(-1);
      if (!frame?.open) return;
      const from = word + (body.slice(word, to).length - body.slice(word, to).trimStart().length);
      if (frame.open === "[" && body.slice(from, to).trim()) entries.push({ path: path(), line, key: null, value: [offset + from, offset + from + body.slice(from, to).trim().length] });
      else if (frame.entry) frame.entry.value = [frame.entry.value[0], offset + body.slice(0, to).trimEnd().length];
    };
    for (; at < body.length; at++) {
      const letter = body[at], frame = stack.at(-1);
      if (letter === '"' || letter === "'") {
        const close = body.indexOf(letter, at + 1);
        at = close < 0 ? body.length : close;
      } else if (letter === "{" || letter === "[") {
        stack.push({ open: letter, step: letter === "[" ? 0 : null, indent: -1, line });
        word = at + 1;
      } else if (letter === "}" || letter === "]") {
        end(at);
        stack.pop();
        word = at + 1;
        if (stack.at(-1)?.open === "{" && stack.at(-1).entry) stack.at(-1).entry.value[1] = offset + at + 1;
        if (!inFlow()) return;
      } else if (letter === "," && frame?.open) {
        end(at);
        frame.step = frame.open === "[" ? frame.step + 1 : null;
        frame.entry = null;
        word = at + 1;
      } else if (letter === ":" && frame?.open === "{" && /\s|$/.test(body[at + 1] ?? "")) {
        const raw = body.slice(word, at), from = offset + word + (raw.length - raw.trimStart().length);
        frame.step = raw.trim().replace(/^["']|["']$/g, "");
        frame.entry = { path: path(), line, key: [from, offset + at], value: [offset + at + 2, offset + at + 2] };
        entries.push(frame.entry);
        word = at + 1;
      }
    }
    const frame = stack.at(-1);
    end(body.length);
    const rest = body.slice(Math.min(word, body.length));
    state = { ...state, key: frame?.open === "{" ? frame.step : null, start: offset + word + (rest.length - rest.trimStart().length) };
  }
}

/** The path of a fault, such as tasks[0].train, in steps: ["tasks", 0, "train"]. */
export const steps = (path) => path.split(/[.[\]]+/).filter(Boolean).map((step) => (/^\d+$/.test(step) ? Number(step) : step));

/** The entry at a path, or at the nearest one around it; undefined where there is none. */
export function entryAt(entries, path) {
  for (let length = path.length; length > 0; length--) {
    const found = entries.find((entry) => entry.path.length === length && entry.path.every((step, i) => step === path[i]));
    if (found) return found;
  }
  return undefined;
}

const TOKEN = /((?<=^|\s)#.*)|("(?:[^"\\\n]|\\.)*"|'[^'\n]*')|([\p{L}_][\w.\p{L}/-]*)(?=\s*:(?:\s|$))|((?<![\w.])[+-]?\d[\d_]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]))|(\b(?:true|false|null)\b)|([{}[\],:]|^\s*-(?=\s))/gimu;
const KINDS = ["comment", "text", "key", "number", "word", "sign"];

/** The text in coloured parts, as nodes; wrong: [[start, end]] of what is underlined. */
export function coloured(text, wrong) {
  const found = document.createDocumentFragment();
  const cuts = [...new Set(wrong.flat())].sort((a, b) => a - b);
  const add = (from, to, kind) => {
    for (const cut of [...cuts.filter((c) => c > from && c < to), to]) {
      const bad = wrong.some(([start, end]) => start <= from && from < end);
      const part = text.slice(from, cut);
      if (!kind && !bad) found.append(part);
      else found.append(Object.assign(document.createElement("span"), { className: `${kind}${bad ? " wrong" : ""}`.trim(), textContent: part }));
      from = cut;
    }
  };
  let done = 0;
  for (const match of text.matchAll(TOKEN)) {
    add(done, match.index, "");
    done = match.index + match[0].length;
    add(match.index, done, KINDS[match.slice(1).findIndex((group) => group !== undefined)]);
  }
  add(done, text.length, "");
  return found;
}
