"use strict";

// # dom: data and elements
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const n = data.ids.length;
const SVG = new Set(["path", "line", "circle", "text"]);

// an element with attributes, listeners (on...) and children; a string among the children becomes a text node.
function el(tag, attrs, ...kids) {
  const e = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [k, v] of Object.entries(attrs || {})) {
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else e.setAttribute(k, v);
  }
  e.append(...kids);
  return e;
}

// # columns: what is known of them
const column = name => data.columns.find(c => c.name === name);
const score = column(data.sort_by), support = column("support"), label = column(data.label);
const lo = column(data.sort_by + "_lo"), hi = column(data.sort_by + "_hi");
const item = data.item, items = item + "s";
// the interval stands beside its score, and sorts by its lower end: what is surely high comes first
const ends = lo && hi ? [{name: "interval", kind: "span", values: lo.values}] : [];
const withEnds = names => names.map(column).flatMap(c => c === score ? [c, ...ends] : [c]);
const listed = withEnds(data.listed);
const first = new Set(withEnds(data.first));
data.words.interval = "95 % interval of " + data.sort_by + "; sorted by its lower end";
const count = v => v.toLocaleString("en");

function show(c, r) {
  const v = c.values[r];
  if (c.kind === "text") return v;
  if (v === null) return "\u2013";
  if (c.kind === "span") return short(v) + " to " + short(hi.values[r]);
  if (c.kind === "int") return count(v);
  return Math.abs(v) < 1e-3 && v !== 0 ? v.toExponential(1) : v.toPrecision(3);
}
const short = v => v === null ? "\u2013" : v.toFixed(2).replace("0.", ".");
const fate = label && label.name === "name" ? column("status") : null;
const untested = r => fate && fate.values[r] === "untested" ? " (untested)" : "";
const title = r => data.ids[r] + (label && label.values[r] !== "" ? "  " + show(label, r) + untested(r) : "");
const meaning = name => data.words[name] ? {title: data.words[name]} : {};
const visible = () => listed.filter(c => state.shown.has(c));
const interval = r => lo && hi && lo.values[r] !== null && hi.values[r] !== null ? [lo.values[r], hi.values[r]] : null;

// # head: title, summary and figures are there once and never change
document.title = $("title").textContent = data.title;
$("intro").textContent = data.intro;
for (const [k, v] of data.summary) $("summary").append(el("div", {}, el("dt", {}, k), el("dd", {}, v)));
for (const [caption, src] of data.figures) {
  $("figures").append(el("figure", {}, el("img", {src, alt: caption}), el("figcaption", {}, caption)));
}
$("summary").hidden = !data.summary.length;
document.documentElement.style.setProperty("--thumb", data.thumb + "px");

// # order: which rows, in which order
const PAGE = 25;
const state = {query: "", by: ends[0] ?? score, down: true, page: 0, at: null, shown: new Set(first), more: false};
let sorted = [], order = [], texts = null;

// all rows by the chosen column, undefined last, equals in the table's order
function sort() {
  const rows = data.ids.map((_, r) => r);
  const v = state.by ? state.by.values : rows, s = state.down ? -1 : 1;
  const undefinedLast = (a, b) => (v[a] === null) - (v[b] === null);
  sorted = [...rows].sort((a, b) => undefinedLast(a, b) || (v[a] < v[b] ? -s : v[a] > v[b] ? s : a - b));
  search();
}
// those of them that hold every word
function search() {
  const words = state.query.toLowerCase().split(" ").filter(w => w);
  if (words.length && !texts) {
    const written = data.columns.filter(c => c.kind === "text");
    texts = data.ids.map((id, r) => [id, ...written.map(c => c.values[r])].join(" ").toLowerCase());
  }
  order = sorted.filter(r => words.every(w => texts[r].includes(w)));
  state.page = 0;
  table();
  draw();
}

// # table: 25 rows of that order
function heading(name, c) {
  const by = () => {
    state.down = state.by === c ? !state.down : !c || c.kind !== "text";
    state.by = c;
    sort();
  };
  const pieces = name.split(/(?<=[_@])/).flatMap((piece, i) => i ? [el("wbr"), piece] : [piece]);
  const button = el("button", {type: "button", onclick: by}, ...pieces);
  const kind = c && c.kind === "text" ? "text" : "";
  const th = el("th", {class: kind, scope: "col", role: "columnheader", ...meaning(name)}, button);
  if (state.by === c) th.setAttribute("aria-sort", state.down ? "descending" : "ascending");
  return th;
}
function row(r) {
  const cell = c => el("td", {role: "cell", class: c.kind === "text" ? "text" : ""}, show(c, r));
  const number = el("td", {role: "cell"}, el("button", {type: "button"}, data.ids[r]));
  const tr = el("tr", {role: "row", "data-row": r}, number, ...visible().map(cell));
  if (r === state.at) tr.setAttribute("aria-current", "true");
  return tr;
}
function table() {
  const focused = document.activeElement && document.activeElement.closest("th");
  const had = focused ? focused.textContent : null, from = state.page * PAGE, to = Math.min(from + PAGE, order.length);
  $("head").replaceChildren(heading("feature", null), ...visible().map(c => heading(c.name, c)));
  $("rows").replaceChildren(...order.slice(from, to).map(row));
  if (had !== null) [...$("head").querySelectorAll("button")].find(b => b.textContent === had).focus();
  const some = count(order.length) + (order.length < n ? " of " + count(n) : "") + " features";
  $("count").textContent = order.length ? count(from + 1) + "\u2013" + count(to) + " of " + some : "no feature matches";
  $("prev").disabled = !from;
  $("next").disabled = to >= order.length;
}
function leaf(by) {
  state.page += by;
  table();
}

// # legend: five scores first, the others on demand, each with its words
function choose(shown) {
  state.shown = new Set(shown);
  listed.forEach((c, i) => { $("legend").querySelectorAll("input")[i].checked = state.shown.has(c); });
  $("columns").querySelector("summary").textContent =
    "What the columns mean (" + state.shown.size + " of " + listed.length + " shown)";
  table();
}
function choice(c) {
  const flip = e => choose(listed.filter(d => d === c ? e.target.checked : state.shown.has(d)));
  const box = el("input", {type: "checkbox", onchange: flip});
  return [el("dt", {}, el("label", {}, box, c.name)), el("dd", {}, data.words[c.name] ?? "")];
}
$("legend").append(...listed.flatMap(choice));
$("all").addEventListener("click", () => choose(listed));
$("few").addEventListener("click", () => choose(first));

// # keys: search, pages, and arrows between rows
$("query").addEventListener("input", e => {
  state.query = e.target.value;
  search();
});
$("prev").addEventListener("click", () => leaf(-1));
$("next").addEventListener("click", () => leaf(1));
$("rows").addEventListener("click", e => {
  const tr = e.target.closest("tr");
  if (tr) select(+tr.dataset.row);
});
$("rows").addEventListener("keydown", e => {
  const by = {ArrowDown: 1, ArrowUp: -1}[e.key];
  if (!by) return;
  e.preventDefault();
  const buttons = [...$("rows").querySelectorAll("button")];
  const next = buttons[buttons.indexOf(document.activeElement) + by];
  if (next) return next.focus();
  if ((by > 0 ? $("next") : $("prev")).disabled) return;
  leaf(by);
  const there = $("rows").querySelectorAll("button");
  there[by > 0 ? 0 : there.length - 1].focus();
});
document.addEventListener("keydown", e => {
  if (e.key !== "/" || document.activeElement === $("query")) return;
  e.preventDefault();
  $("query").focus();
});

// # scale: where a score and a support stand in the plot
const ok = r => support && support.values[r] > 0 && score.values[r] !== null;
const plotted = data.ids.map((_, r) => r).filter(ok);
const range = v => v.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
const [x0, x1] = range(plotted.map(r => support.values[r]));
const [y0, y1] = range(plotted.map(r => score.values[r]).concat(data.floor ?? []));
let W = 0, marks = [];
const H = 330, L = 44, R = 12, T = 8, B = 38, xspan = Math.log(x1 / x0) || 1, yspan = y1 - y0 || 1;
const X = v => L + (W - L - R) * (.02 + .96 * Math.log(v / x0) / xspan);
const Y = v => H - B - (H - T - B) * (.03 + .94 * (v - y0) / yspan);

// round numbers between a and b, at most six steps apart.
function steps(a, b) {
  const size = 10 ** Math.floor(Math.log10((b - a) / 4 || 1));
  const s = [1, 2, 5, 10].map(m => m * size).find(s => (b - a) / s <= 6);
  const out = [];
  for (let i = Math.ceil(a / s); i * s <= b; i++) out.push(+(i * s).toPrecision(6));
  return out;
}
// 1, 2, 5, 10 ... between a and b; powers of ten alone where there are many.
function decades(a, b) {
  const out = [], marks = b / a > 50 ? [1] : [1, 2, 5];
  for (let p = 10 ** Math.floor(Math.log10(a)); p <= b; p *= 10) {
    for (const m of marks) if (m * p >= a && m * p <= b) out.push(m * p);
  }
  return out.length > 1 ? out : [...new Set([a, b])];
}

// # plot: score against support
const line = (x1, x2, y1, y2, cls) => el("line", {x1, x2, y1, y2, class: cls});
const dot = r => "M" + X(support.values[r]).toFixed(1) + " " + Y(score.values[r]).toFixed(1) + "h0";
const dots = (rows, size, cls) => el("path", {d: rows.map(r => marks[r]).join(""), class: cls, "stroke-width": size});

function axes() {
  const out = [];
  for (const v of steps(y0, y1)) {
    out.push(line(L, W - R, Y(v), Y(v), "grid"), el("text", {x: L - 6, y: Y(v) + 4, "text-anchor": "end"}, String(v)));
  }
  for (const v of decades(x0, x1)) {
    out.push(line(X(v), X(v), H - B, H - B + 4, "grid"));
    out.push(el("text", {x: X(v), y: H - B + 16, "text-anchor": "middle"}, count(v)));
  }
  if (data.floor !== null) out.push(line(L, W - R, Y(data.floor), Y(data.floor), "floor"));
  const name = items + " on which the feature fires (support)";
  out.push(el("text", {x: (L + W - R) / 2, y: H - 4, "text-anchor": "middle"}, name));
  return out;
}
function draw() {
  $("look").classList.toggle("bare", !plotted.length);
  if (!plotted.length) return;
  if (W !== $("plot").clientWidth) {
    W = $("plot").clientWidth;
    for (const r of plotted) marks[r] = dot(r);
  }
  const size = plotted.length > 2e4 ? 2 : plotted.length > 2e3 ? 3 : 5;
  const searched = order.length < n, shade = searched ? "dots faint" : size < 3 ? "dots many" : "dots";
  const out = axes();
  for (let i = 0; i < 8; i++) out.push(dots(plotted.filter(r => r % 8 === i), size, shade));
  if (searched) out.push(dots(order.filter(ok), Math.max(size, 3), "hits"));
  $("plot").replaceChildren(...out);
  mark();
}
function mark() {
  $("plot").querySelectorAll(".pick").forEach(e => e.remove());
  const r = state.at;
  if (r === null || !ok(r)) return;
  const x = X(support.values[r]), ends = interval(r);
  if (ends) $("plot").append(line(x, x, Y(ends[0]), Y(ends[1]), "pick"));
  $("plot").append(el("circle", {cx: x, cy: Y(score.values[r]), r: 6, class: "pick"}));
}

// # hover: the nearest dot, by mouse or by arrows
function nearest(e) {
  const box = $("plot").getBoundingClientRect(), px = e.clientX - box.left, py = e.clientY - box.top;
  let best = null, least = 18 ** 2;
  for (const r of plotted) {
    const d = (X(support.values[r]) - px) ** 2 + (Y(score.values[r]) - py) ** 2;
    if (d < least) [best, least] = [r, d];
  }
  return best;
}
const without = n - plotted.length;
const hint = !plotted.length ? "no feature has both a score and a support to plot"
  : data.sort_by + " against support" + (without ? "; " + count(without) + " without a score not drawn" : "");

function hover(r) {
  $("plot").querySelectorAll(".near").forEach(e => e.remove());
  $("readout").textContent = hint;
  if (r === null) return;
  $("readout").textContent = data.sort_by + " " + show(score, r) + ", support " + show(support, r) + ": " + title(r);
  $("plot").append(el("circle", {cx: X(support.values[r]), cy: Y(score.values[r]), r: 5, class: "near"}));
}
$("plot").addEventListener("pointermove", e => hover(nearest(e)));
$("plot").addEventListener("pointerleave", () => hover(null));
$("plot").addEventListener("click", e => {
  const r = nearest(e);
  if (r !== null) select(r);
});
$("plot").addEventListener("keydown", e => {
  const by = {ArrowRight: 1, ArrowLeft: -1}[e.key];
  if (!by || !order.length) return;
  e.preventDefault();
  const i = order.indexOf(state.at);
  select(order[i < 0 ? 0 : Math.min(Math.max(i + by, 0), order.length - 1)]);
});

// # cards: a score on its scale, and photographs or texts
const [s0, s1] = range(score.values.filter(v => v !== null).concat(data.floor ?? []));
const percent = v => 100 * Math.min(Math.max((v - s0) / (s1 - s0 || 1), 0), 1);

function bar(cls, left, right) {
  const e = el("i", {class: cls});
  e.style.left = left + "%";
  if (right !== undefined) e.style.width = right - left + "%";
  return e;
}
function scale(r) {
  const e = el("div", {class: "scale"}, el("i")), v = score.values[r], ends = interval(r);
  if (data.floor !== null) e.append(bar("low", percent(data.floor)));
  if (ends) e.append(bar("span", ...ends.map(percent)));
  if (v !== null) e.append(bar("at", percent(v)));
  return e;
}
function photo(id, act, most) {
  const strength = el("div", {class: "act"}), text = data.captions[id] ?? item + " " + id;
  strength.style.width = 100 * (most > 0 ? Math.max(act, 0) / most : 0) + "%";
  const image = el("img", {src: data.thumbs[id], alt: text});
  return el("figure", {title: text + "  (activation " + act + ")"}, image, strength, el("figcaption", {}, text));
}
// a text, its tokens the darker the more active they are
function tint(part, act, most) {
  const e = el("mark", {title: "activation " + act}, part);
  e.style.setProperty("--on", (12 + 44 * Math.min(act / most, 1)).toFixed(0) + "%");
  return e;
}
const marks_of = (parts, most) => parts.map(([part, v]) => v > 0 ? tint(part, v, most) : part);
const run = (...kids) => el("bdi", {dir: "auto"}, ...kids);
// the whole text, made when it is asked for: its parts are shared by all features that show it
function whole(id, on, most) {
  const acts = new Map(on), parts = data.wholes[id];
  const open = e => {
    if (e.target.open && e.target.children.length < 2) {
      e.target.append(run(...marks_of(parts.map((part, n) => [part, acts.get(n) ?? 0]), most)));
    }
  };
  return el("details", {class: "whole", ontoggle: open}, el("summary", {}, "whole text"));
}
function passage(c, i, most) {
  const id = c.items[i], said = data.captions[id] ?? "", act = c.acts[i];
  const value = el("span", {class: "soft", title: "strongest activation"}, act.toPrecision(3));
  const text = el("div", {}, run(...marks_of(c.texts[i], most)));
  if (data.wholes[id]) text.append(whole(id, c.on[i], most));
  return el("div", {class: "passage", title: said || item + " " + id}, value, text);
}
// what else is known of a feature of texts: what it writes, where it is on, and on what only just not
function writes(c, side) {
  const own = c.writes.filter(w => w[0] === side);
  const token = ([, text, v]) => el("span", {class: "token", title: "logit " + v}, run(text));
  return el("p", {class: "writes"}, el("b", {}, side), ...own.map(token));
}
function places(c) {
  const most = Math.max(...c.places.map(p => p[1] ?? 0)) || 1, bars = el("div", {class: "places"});
  for (const [words, v] of c.places) {
    const share = v === null ? "\u2013" : (100 * v).toPrecision(3) + " %";
    const e = el("i", {title: "token " + words + ": on for " + share});
    e.style.height = 100 * (v ?? 0) / most + "%";
    bars.append(e);
  }
  const said = "by place in the text, the highest bar " + (100 * most).toPrecision(3) + " %";
  return [el("p", {class: "soft"}, said), bars];
}
function misses(c) {
  const almost = parts => run(...parts.map(([part, v]) => v ? el("u", {}, part) : part));
  const number = pre => el("span", {class: "soft", title: "pre-activation"}, pre.toPrecision(2));
  const lines = c.near.map(([pre, parts]) => el("div", {class: "passage"}, number(pre), el("div", {}, almost(parts))));
  return el("details", {}, el("summary", {}, "texts on which it is only just not on"), ...lines);
}
function photos(r) {
  const c = data.cards[r], most = c ? Math.max(...c.acts) : 0;
  if (!c) return el("p", {class: "soft"}, items + " are kept for the chosen features only");
  if (!c.texts) return el("div", {class: "photos"}, ...c.items.map((id, i) => photo(id, c.acts[i], most)));
  const texts = c.items.map((_, i) => passage(c, i, most)), more = c.near ? [misses(c)] : [];
  if (c.writes) more.push(writes(c, "promoted"), writes(c, "suppressed"));
  return el("div", {}, ...texts, ...more, ...(c.places ? places(c) : []));
}
function card(r) {
  const span = interval(r) ? " [" + show(lo, r) + ", " + show(hi, r) + "]" : "";
  const name = el("button", {type: "button", class: "name", onclick: () => select(r)}, title(r));
  const value = el("span", meaning(data.sort_by), data.sort_by + " " + show(score, r) + span);
  return el("article", {class: "card", "data-card": r}, el("header", {}, name, value), scale(r), photos(r));
}

// # select: one feature, with its values
function values(r, columns) {
  const value = c => el("div", meaning(c.name), el("dt", {}, c.name), el("dd", {}, show(c, r)));
  return el("dl", {class: "values"}, ...columns.map(value));
}
function select(r, quiet) {
  state.at = r;
  const rest = listed.filter(c => !first.has(c));
  const keep = e => { state.more = e.target.open; };
  const more = el("details", {ontoggle: keep}, el("summary", {}, "other values"), values(r, rest));
  more.open = state.more;
  more.hidden = !rest.length;
  $("picked").replaceChildren(card(r), values(r, listed.filter(c => first.has(c) && c !== label)), more);
  document.querySelectorAll("[aria-current]").forEach(e => e.removeAttribute("aria-current"));
  const same = '#rows [data-row="' + r + '"], #gallery [data-card="' + r + '"]';
  document.querySelectorAll(same).forEach(e => e.setAttribute("aria-current", "true"));
  mark();
  if (!quiet) $("picked").scrollIntoView({block: "nearest"});
}

// # start
for (const [name, rows] of data.groups) {
  $("gallery").append(el("h3", {}, name), el("div", {class: "cards"}, ...rows.map(card)));
}
$("photographs").hidden = !data.groups.length;
$("kind").textContent = item === "text" ? "Texts" : "Photographs";
$("shown").textContent = data.shown;
$("query").disabled = false;
hover(null);
sort();
choose(first);
select(order[0], true);
new ResizeObserver(() => { if ($("plot").clientWidth !== W) draw(); }).observe($("look"));
