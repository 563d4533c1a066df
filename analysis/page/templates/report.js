"use strict";
// The page is written without its table, plots and details: this builds them from the JSON in #data. What there are
// thousands of is an array in a fixed order (analysis/page/page_json.py names the fields), the rest are objects.
const data = JSON.parse(document.getElementById("data").textContent);
const variants = new Map(data.variants.map((variant) => [variant.variant, variant]));
const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/** An element with text or child nodes; text is never parsed as HTML. */
function make(tag, className, ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
}
function draw(tag, attributes, ...content) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...content);
  return element;
}

// Theme: the reader's system decides until the button does.
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const requested = new URLSearchParams(location.search).get("theme");
const setTheme = (dark) => { root.dataset.theme = dark ? "dark" : "light"; };
setTheme(requested ? requested === "dark" : system.matches);
system.addEventListener("change", (event) => setTheme(event.matches));
byId("theme").addEventListener("click", () => setTheme(root.dataset.theme !== "dark"));

// Whoever goes by keys sees all of what has the focus: browsers leave alone what is seen in part.
document.addEventListener("focusin", ({ target }) => {
  if (target.matches(":focus-visible")) target.scrollIntoView({ block: "nearest", inline: "nearest" });
});

// The details of one variant.
let chosen = "";
function layers(drawing) {
  const row = make("div", "layers");
  row.title = "one box per layer: the KV heads of an owner, or a line where it reads those of a layer below";
  row.append(...drawing.split(" ").map((cell) => make("i", /^\d/.test(cell) ? "owner" : "", cell)));
  return row;
}

function pairs(rows) {
  const list = make("dl");
  for (const [name, value, why] of rows) list.append(make("dt", "", name), make("dd", why ? "why" : "", value || why));
  return list;
}

function link(text, address, title) {
  const element = make("a", "", text);
  element.href = address;
  element.title = title;
  return element;
}

function stepRow([kind, id]) {
  const [state, reason, time, files, run] = data.steps[id];
  const name = make("td", "", kind);
  name.title = id;
  const links = make("td");
  if (files) links.append(link("files", files, "its configuration, record, outputs and logs"));
  if (files) links.append(" ", link("logs", `${files}/attempts`, "what each attempt printed"));
  if (run) links.append(" ", link("W&B", run, "its run on Weights & Biases"));
  const row = make("tr", "", name, make("td", "", badge(state)), make("td", "", time), links);
  if (!reason) return [row];
  const why = make("td", "why", reason);
  why.colSpan = 4;
  return [row, make("tr", "", why)];
}
const badge = (state) => make("span", `state ${state.toLowerCase()}`, state.toLowerCase());

function describe(variant) {
  const steps = make("table", "steps");
  steps.append(...variant.steps.flatMap(stepRow));
  const parts = [
    make("h3", "", variant.variant), make("p", "small", [variant.family, variant.note].filter(Boolean).join(" · ")),
    layers(variant.layout), make("h4", "", "Cost"), pairs(variant.facts), make("h4", "", "Scores"), pairs(variant.scores),
    ...(variant.seeds.length ? [make("h4", "", `Seeds: ${variant.scores[0][0]}`), pairs(variant.seeds)] : []), make("h4", "", "Steps"), steps,
  ];
  const lines = [...new Set([...variant.overrides, ...variant.config])];
  if (lines.length) parts.push(make("h4", "", "Configuration of its own"), make("pre", "", lines.join("\n")));
  return parts;
}

function choose(name, { scroll = false } = {}) {
  const variant = variants.get(name), detail = byId("detail");
  if (!variant || !detail) return;
  chosen = name;
  detail.replaceChildren(...describe(variant));
  detail.scrollTop = 0;
  for (const old of all(".chosen")) old.classList.remove("chosen");
  markChosen();
  if (scroll) byId("quality").scrollIntoView({ behavior: "smooth" });
}
function markChosen() {
  for (const element of all(`[data-variant="${CSS.escape(chosen)}"]`)) element.classList.add("chosen");
}

// The plot: hovering shows a summary, a click chooses.
const tip = byId("tip"), panel = byId("plot");
let shownPlot = 0;
function pointOf(mark, styles) {
  const [name, x, y, bar, family, status, , , , , label] = mark;
  const leads = status === "front" || status === "beyond";
  const [, colour, dark, shape] = styles.get(family);
  const group = draw("g", { class: `point ${leads ? "lead" : status}`, style: `--c:${colour};--d:${dark}`, tabindex: -1, role: "button", "aria-label": name, "data-variant": name });
  if (bar) group.append(draw("line", { class: "error", x1: x, x2: x, y1: bar[0], y2: bar[1] }));
  const path = status === "untouched" ? "M-6,0H6M0,-6V6" : shape;
  group.append(draw("path", { transform: `translate(${x},${y})`, d: path }));
  if (label) group.append(draw("text", { x: label[0], y: label[1], "text-anchor": label[2] }, name));
  group.mark = mark;
  return group;
}

function showPlot(number) {
  const plot = data.plots[number], styles = new Map(plot.families.map((family) => [family[0], family]));
  const { width, height, left, right, top, bottom } = data.frame;
  shownPlot = number;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${plot.label} against ${plot.cost}` });
  for (const [x, text] of plot.x) {
    svg.append(draw("line", { class: "grid", x1: x, x2: x, y1: top, y2: bottom }));
    svg.append(draw("text", { class: "tick", x, y: bottom + 18, "text-anchor": "middle" }, text));
  }
  for (const [y, text] of plot.y) {
    svg.append(draw("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
    svg.append(draw("text", { class: "tick", x: left - 8, y: y + 4, "text-anchor": "end" }, text));
  }
  svg.append(draw("path", { class: "axis", d: `M${left},${top}V${bottom}H${right}` }));
  svg.append(draw("text", { class: "title", x: (left + right) / 2, y: height - 8, "text-anchor": "middle" }, plot.cost));
  svg.append(draw("text", { class: "title", transform: `translate(16,${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, plot.axis));
  for (const [y, kind, name, label] of plot.levels) {
    svg.append(draw("line", { class: `level ${kind}`, x1: left, x2: right, y1: y, y2: y }));
    if (label) svg.append(draw("text", { class: "level-name", x: label[0], y: label[1], "text-anchor": label[2] }, name));
  }
  for (const [x1, y1, x2, y2, undecided] of plot.front) svg.append(draw("line", { class: undecided ? "front open" : "front", x1, y1, x2, y2 }));
  const points = plot.marks.map((mark) => pointOf(mark, styles));
  svg.append(...points);
  panel.replaceChildren(svg);
  const reachable = points.find((point) => point.dataset.variant === chosen) || points.at(-1);
  if (reachable) reachable.setAttribute("tabindex", 0);
  byId("reading").textContent = plot.legend;
  byId("legend").replaceChildren(...plot.families.map(legendEntry));
  markChosen();
}

function legendEntry([name, colour, dark, shape, coverage]) {
  const entry = make("span", "", "");
  entry.style.setProperty("--c", colour);
  entry.style.setProperty("--d", dark);
  entry.append(draw("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, draw("path", { d: shape })), name);
  if (coverage) entry.append(make("small", "", `${coverage} %`));
  return entry;
}

function showTip(point) {
  const [name, , , , , status, cost, , leader, chance, , note] = point.mark, variant = variants.get(name);
  const score = data.plots[shownPlot].score;
  const lines = variant.scores.filter(([, value]) => value).slice(0, 6).map(([label, value]) => `${label}: ${value}`);
  lines.sort((a, b) => b.startsWith(`${score}:`) - a.startsWith(`${score}:`));
  if (note) lines.unshift(note);
  const time = variant.facts.find(([fact]) => fact === "device time");
  lines.push(`${cost.toLocaleString("en")} KV bytes per token${time ? `, ${time[1]} of device time` : ""}`);
  if (chance !== null && status !== "untouched") lines.push(`on the front with ${Math.round(100 * chance)} %`);
  if (leader) lines.push(`dominated by ${leader}`);
  tip.replaceChildren(make("b", "", name), make("span", "mono", variant.layout), ...lines.map((line) => make("div", "", line)));
  tip.hidden = false;
  const at = point.querySelector("path").getBoundingClientRect(), size = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.x + at.width / 2 - size.width / 2), innerWidth - size.width - 8);
  const above = at.y - size.height - 10;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : at.bottom + 10}px`;
}

/** Move the focus to the next point along the axis of costs. */
function step(point, forwards) {
  const points = all(".point", panel).sort((a, b) => a.mark[1] - b.mark[1] || a.mark[2] - b.mark[2]);
  const next = points[points.indexOf(point) + (forwards ? 1 : -1)];
  if (!next) return;
  point.setAttribute("tabindex", -1);
  next.setAttribute("tabindex", 0);
  next.focus();
}

if (panel) {
  const pointAt = (event) => event.target.closest(".point");
  const hide = () => { tip.hidden = true; };
  for (const event of ["mouseover", "focusin"]) panel.addEventListener(event, (e) => { const point = pointAt(e); if (point) showTip(point); });
  for (const event of ["mouseout", "focusout"]) panel.addEventListener(event, hide);
  panel.addEventListener("click", (event) => { const point = pointAt(event); if (point) choose(point.dataset.variant); });
  panel.addEventListener("keydown", (event) => {
    const point = pointAt(event), forwards = ["ArrowRight", "ArrowDown"].includes(event.key);
    if (event.key === "Escape") hide();
    if (!point) return;
    if (event.key === "Enter" || event.key === " ") choose(point.dataset.variant);
    else if (forwards || ["ArrowLeft", "ArrowUp"].includes(event.key)) step(point, forwards);
    else return;
    event.preventDefault();
  });
}
const tabs = all(".switch button");
function selectTab(tab) {
  for (const other of tabs) {
    other.setAttribute("aria-selected", String(other === tab));
    other.setAttribute("tabindex", other === tab ? 0 : -1);
  }
  panel.setAttribute("aria-labelledby", tab.id);
  showPlot(Number(tab.dataset.plot));
}
for (const tab of tabs) {
  tab.addEventListener("click", () => selectTab(tab));
  tab.addEventListener("keydown", (event) => {
    const next = tabs[tabs.indexOf(tab) + ({ ArrowRight: 1, ArrowLeft: -1 }[event.key] || 0)];
    if (next && next !== tab) { selectTab(next); next.focus(); }
  });
}

// The table: click a heading to sort, type to filter, click a row to choose. A page of it is built at a time.
const PAGE = 200;
const head = document.querySelector("#table thead"), body = document.querySelector("#table tbody");
const order = data.rows.map((_, i) => i);
let found = order, first = 0;
const text = (cell) => (Array.isArray(cell) ? cell[0] : cell);
const key = (row, column) => {
  if (column === 1) return data.states[row];
  const cell = data.rows[row][column ? column - 1 : 0];
  return Array.isArray(cell) && cell[1] !== null ? cell[1] : cell;
};
/** Numbers before words, words by name; empty cells and reasons stay last whichever way the column is sorted. */
function compare(a, b, sign) {
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  if ((typeof a === "number") !== (typeof b === "number")) return typeof a === "number" ? -1 : 1;
  return sign * collator.compare(text(a), text(b));
}
const collator = new Intl.Collator("en", { numeric: true });

function buildHead() {
  const row = make("tr");
  for (const title of [data.headers[0], "state", ...data.headers.slice(1)]) {
    const button = make("button", "", title.replace(/ ([↑↓])/, "\u00a0$1").replace("Δ ", "Δ\u00a0").replace("/", "/\u200b"));
    button.type = "button";
    const heading = make("th", "", button);
    heading.scope = "col";
    heading.ariaSort = "none";
    row.append(heading);
  }
  head.append(row);
  row.addEventListener("click", (event) => {
    const heading = event.target.closest("th");
    if (event.target.closest("button")) sortBy(heading);
  });
}
function sortBy(heading) {
  const next = { none: "ascending", ascending: "descending", descending: "none" }[heading.ariaSort];
  for (const other of heading.parentElement.cells) other.ariaSort = "none";
  heading.ariaSort = next;
  const sign = { none: 0, ascending: 1, descending: -1 }[next], column = heading.cellIndex;
  order.sort((a, b) => (sign && compare(key(a, column), key(b, column), sign)) || a - b);
  sift();
}

function cellOf(cell) {
  const [shown, , best, missing] = Array.isArray(cell) ? cell : [cell];
  const [value, error] = shown.split(" ±");
  const element = make("td", missing ? "missing" : best ? "best" : "", value);
  if (missing) element.title = missing;
  if (error) element.append(make("small", "", ` ±${error}`));
  return element;
}
function rowOf(i) {
  const name = data.variants[i].variant, [title, ...cells] = data.rows[i];
  const row = make("tr", [data.baselines[i] ? "baseline" : "", name === chosen ? "chosen" : ""].join(" ").trim());
  const pick = make("button", "", text(title));
  pick.type = "button";
  row.dataset.variant = name;
  row.append(make("td", "", pick), make("td", "", badge(data.states[i])), ...cells.map(cellOf));
  return row;
}
function showRows() {
  body.replaceChildren(...found.slice(first, first + PAGE).map(rowOf));
  byId("pages").hidden = found.length <= PAGE;
  byId("where").textContent = `${(first + 1).toLocaleString("en")}–${Math.min(first + PAGE, found.length).toLocaleString("en")}`;
  byId("before").disabled = first === 0;
  byId("after").disabled = first + PAGE >= found.length;
}

const filter = byId("filter"), stateFilter = byId("state");
const words = data.rows.map((row, i) => [
  data.variants[i].variant, data.states[i], ...row.flatMap((cell) => (Array.isArray(cell) ? [cell[0], cell[3]] : [cell])),
].join(" ").toLowerCase());
function sift() {
  const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean), state = stateFilter.value;
  found = order.filter((i) => (!state || data.states[i] === state) && wanted.every((word) => words[i].includes(word)));
  first = 0;
  const whole = `${order.length.toLocaleString("en")} ${data.unit}`;
  byId("count").textContent = found.length < order.length ? `${found.length.toLocaleString("en")} of ${whole}` : whole;
  showRows();
}
function turn(by) { first += by; showRows(); }

const counts = new Map();
for (const state of data.states) counts.set(state, (counts.get(state) || 0) + 1);
stateFilter.append(new Option("every state", ""), ...[...counts].map(([state, count]) => new Option(`${state.toLowerCase()} (${count})`, state)));
stateFilter.hidden = counts.size < 2;
filter.addEventListener("input", sift);
stateFilter.addEventListener("input", sift);
byId("before").addEventListener("click", () => turn(-PAGE));
byId("after").addEventListener("click", () => turn(PAGE));
body.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (row) choose(row.dataset.variant, { scroll: true });
});

buildHead();
sift();
const leading = data.plots.map((plot) => plot.marks.filter((mark) => mark[5] === "front").at(-1)).find(Boolean) || data.plots[0]?.marks[0];
choose(leading ? leading[0] : variants.keys().next().value);
if (panel) showPlot(0);
