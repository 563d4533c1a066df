"use strict";
const variants = new Map(JSON.parse(document.getElementById("data").textContent).map((v) => [v.variant, v]));
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/** An element with text or child nodes; text is never parsed as HTML. */
function make(tag, className, ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
}

// Theme: the reader's system decides until the button does.
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const asked = new URLSearchParams(location.search).get("theme");
const paint = (dark) => { root.dataset.theme = dark ? "dark" : "light"; };
paint(asked ? asked === "dark" : system.matches);
system.addEventListener("change", (event) => paint(event.matches));
document.getElementById("theme").addEventListener("click", () => paint(root.dataset.theme !== "dark"));

// What is known about one variant.
function layers(drawing) {
  const row = make("div", "layers");
  row.title = "one box per layer: KV heads of an owner, or whose keys and values it reads";
  row.append(...drawing.split(" ").map((cell) => make("i", /^\d/.test(cell) ? "owner" : "", cell)));
  return row;
}

function pairs(rows) {
  const list = make("dl");
  for (const [name, value, why] of rows) list.append(make("dt", "", name), make("dd", why ? "why" : "", value || why));
  return list;
}

function stepRow(step) {
  const state = make("span", `state ${step.state.toLowerCase()}`, step.state.toLowerCase());
  const name = make("td", "", step.kind);
  name.title = step.id;
  const files = make("td");
  if (step.files) {
    const link = make("a", "", "files");
    link.href = step.files;
    link.title = "its configuration, record, outputs and logs";
    files.append(link);
  }
  const row = make("tr", "", name, make("td", "", state), make("td", "", step.time), files);
  if (!step.reason) return [row];
  const why = make("td", "why", step.reason);
  why.colSpan = 4;
  return [row, make("tr", "", why)];
}

function describe(variant) {
  const steps = make("table", "steps");
  steps.append(...variant.steps.flatMap(stepRow));
  const parts = [
    make("h3", "", variant.variant), make("p", "small", [variant.family, variant.note].filter(Boolean).join(" · ")),
    layers(variant.layout), make("h4", "", "Cost"), pairs(variant.facts), make("h4", "", "Scores"), pairs(variant.scores),
    make("h4", "", "Steps"), steps,
  ];
  const lines = [...variant.overrides, ...variant.config];
  if (lines.length) parts.push(make("h4", "", "Configuration of its own"), make("pre", "", lines.join("\n")));
  return parts;
}

function choose(name, { scroll = false } = {}) {
  const variant = variants.get(name);
  const detail = document.getElementById("detail");
  if (!variant || !detail) return;
  detail.replaceChildren(...describe(variant));
  for (const element of all("[data-variant]")) element.classList.toggle("chosen", element.dataset.variant === name);
  if (scroll) document.getElementById("quality").scrollIntoView({ behavior: "smooth" });
}

// The plot: hover tells, click chooses.
const tip = document.getElementById("tip");
function showTip(point) {
  const variant = variants.get(point.dataset.variant);
  const score = variant.scores[Number(point.closest(".plot").dataset.plot)];
  const by = point.dataset.by;
  tip.replaceChildren(
    make("b", "", variant.variant), make("span", "mono", variant.layout),
    `${score[0]}: ${score[1]}`, make("br"), `${Number(point.dataset.x).toLocaleString("en")} KV bytes per token`,
    ...(by ? [make("br"), `dominated by ${by}`] : []),
  );
  tip.hidden = false;
  const at = point.querySelector("path").getBoundingClientRect(), size = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.x + at.width / 2 - size.width / 2), innerWidth - size.width - 8);
  const above = at.y - size.height - 10;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : at.bottom + 10}px`;
}
for (const point of all(".point")) {
  for (const event of ["mouseenter", "focus"]) point.addEventListener(event, () => showTip(point));
  for (const event of ["mouseleave", "blur"]) point.addEventListener(event, () => { tip.hidden = true; });
  point.addEventListener("click", () => choose(point.dataset.variant));
  point.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(point.dataset.variant); }
  });
}
for (const tab of all(".switch button")) {
  tab.addEventListener("click", () => {
    for (const other of all(".switch button")) other.setAttribute("aria-selected", String(other === tab));
    for (const plot of all(".plot")) plot.hidden = plot.dataset.plot !== tab.dataset.plot;
  });
}

// The table: click a heading to sort, type to filter, click a row to choose.
const body = document.querySelector("#table tbody");
const rows = all("tr", body);
const planned = new Map(rows.map((row, i) => [row, i]));
const key = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.n === undefined ? cell.textContent : Number(cell.dataset.n);
};
/** Numbers before words, words by name; empty cells and reasons stay last whichever way the column is sorted. */
function compare(a, b, sign) {
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return sign * a.localeCompare(b, "en", { numeric: true });
}
for (const heading of all("#table th")) {
  heading.querySelector("button").addEventListener("click", () => {
    const next = { none: "ascending", ascending: "descending", descending: "none" }[heading.ariaSort];
    for (const other of all("#table th")) other.ariaSort = "none";
    heading.ariaSort = next;
    const sign = { none: 0, ascending: 1, descending: -1 }[next];
    const column = heading.cellIndex;
    rows.sort((a, b) => (sign && compare(key(a, column), key(b, column), sign)) || planned.get(a) - planned.get(b));
    body.append(...rows);
  });
}
const filter = document.getElementById("filter");
function sift() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    const text = [row.textContent, ...all("[title]", row).map((cell) => cell.title)].join(" ").toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("count").textContent = words.length ? `${shown} of ${rows.length}` : `${rows.length} variants`;
}
filter.addEventListener("input", sift);
sift();
for (const row of rows) row.addEventListener("click", () => choose(row.dataset.variant, { scroll: true }));

const leader = document.querySelector(".plot:not([hidden]) .point.lead") || document.querySelector(".point");
choose(leader ? leader.dataset.variant : variants.keys().next().value);
