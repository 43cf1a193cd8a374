// Charts as SVG, from arrays; no library. A chart is read by its title and its main numbers, and all its numbers stand in a table below it.
"use strict";

const [WIDE, HIGH, LEFT, RIGHT, TOP, BELOW] = [360, 190, 46, 10, 8, 36];
const COLORS = 9;  // as many as the style sheet has
const TIMES_S = [60, 300, 900, 1800, 3600, 10800, 21600, 43200, ...[1, 2, 3, 7, 14, 30, 61, 91, 182, 365].map((days) => 86400 * days)];

function svg(tag, attributes, ...inside) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}

// A few round numbers from low to high, at least so far apart.
function ticks(low, high, least = 0, most = 5) {
  const rough = Math.max((high - low) / most, least) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((s) => s >= rough * (1 - 1e-9));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}

// Whole hours or days where the reader is, in seconds since 1970.
function timeTicks(low, high, most = 4) {
  const step = TIMES_S.find((s) => (high - low) / s <= most) ?? (high - low) / most;
  const day = new Date(1000 * low);
  day.setHours(0, 0, 0, 0);
  const found = [];
  for (let i = 0; found.length <= most + 1; i++) {
    const next = step < 86400 ? new Date(day.getTime() + 1000 * step * i) : new Date(day.getFullYear(), day.getMonth(), day.getDate() + (i * step) / 86400);
    if (next > 1000 * high) break;
    if (next >= 1000 * low) found.push(next / 1000);
  }
  const ofDay = { hour: "2-digit", minute: "2-digit" }, date = { month: "short", day: "numeric", ...(step > 180 * 86400 ? { year: "numeric" } : {}) };
  const name = (t) => (step < 86400 && new Date(1000 * t).getHours() + new Date(1000 * t).getMinutes() > 0
    ? new Date(1000 * t).toLocaleTimeString([], ofDay) : new Date(1000 * t).toLocaleDateString([], date));
  return found.map((t) => [t, name(t)]);
}

const short = (value) => (Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(1) : String(Number(value.toPrecision(3))));

/* title; series: [{name, points: [[x, y or null, low?, high?], ...]}]; over: what x is called; time: x is in seconds since 1970;
   bars: so wide in x, from the first point's x on; percent: y is a share; whole: y begins at 0 (and of shares ends at 1). */
function chart({ title, series, over = "", time = false, bars = 0, percent = false, whole = false }) {
  const write = (y) => (y === null ? "" : percent ? `${short(100 * y)} %` : short(y));
  const when = (x) => (time ? new Date(1000 * x).toLocaleString([], { dateStyle: "short", timeStyle: "short" }) : short(x));
  const all = series.flatMap((s) => s.points), known = all.filter((p) => p[1] !== null);
  const ys = known.flatMap((p) => p.slice(1).filter((y) => y !== null && y !== undefined)), xs = all.map((p) => p[0]);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs) + bars];
  let [y0, y1] = [Math.min(...ys, ...(whole || bars ? [0] : [])), Math.max(...ys, ...(whole && percent ? [1] : []))];
  if (!ys.length) [y0, y1] = [0, 1];
  if (y1 - y0 < 1e-9 * Math.max(1, Math.abs(y1))) [y0, y1] = [y0 - (y0 && !whole && !bars ? Math.abs(y0) / 2 : 0), y1 + (Math.abs(y1) / 2 || 1)];
  const x = (value) => LEFT + ((value - x0) / (x1 - x0 || 1)) * (WIDE - LEFT - RIGHT);
  const y = (value) => HIGH - BELOW - ((value - y0) / (y1 - y0)) * (HIGH - TOP - BELOW);
  const last = known.at(-1);
  const summary = series.length === 1 && last ? `: last ${write(last[1])}, lowest ${write(Math.min(...known.map((p) => p[1])))}, highest ${write(Math.max(...known.map((p) => p[1])))}` : "";
  const drawing = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": title + summary });
  for (const value of ticks(y0, y1)) {
    drawing.append(svg("line", { class: "grid", x1: LEFT, x2: WIDE - RIGHT, y1: y(value), y2: y(value) }));
    drawing.append(svg("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, write(value)));
  }
  const names = time ? timeTicks(x0, x1) : ticks(x0, x1, 1).map((value) => [value, short(value)]);
  for (const [value, name] of names) {
    drawing.append(svg("line", { class: "grid", x1: x(value), x2: x(value), y1: HIGH - BELOW, y2: HIGH - BELOW + 4 }));
    const anchor = x(value) > WIDE - 24 ? "end" : "middle";  // else it would be truncated
    drawing.append(svg("text", { x: x(value) + (anchor === "end" ? RIGHT - 2 : 0), y: HIGH - BELOW + 16, "text-anchor": anchor }, name));
  }
  drawing.append(svg("text", { x: (LEFT + WIDE) / 2, y: HIGH - 4, "text-anchor": "middle" }, over));
  series.forEach(({ points }, number) => {
    const color = `c${number % COLORS}`;
    if (bars) {
      for (const [left, value] of points) {
        if (value) drawing.append(svg("rect", { class: color, x: x(left) + 0.5, y: y(value), width: Math.max(x(left + bars) - x(left) - 1, 1), height: y(0) - y(value) }));
      }
      return;
    }
    const sure = points.filter((p) => typeof p[2] === "number" && typeof p[3] === "number");
    if (sure.length) {
      const outline = [...sure.map((p) => [p[0], p[3]]), ...sure.toReversed().map((p) => [p[0], p[2]])];
      drawing.append(svg("polygon", { class: `interval ${color}`, points: outline.map((p) => `${x(p[0])},${y(p[1])}`).join(" ") }));
    }
    let path = "", pen = "M";
    for (const [at, value] of points) {
      if (value !== null) path += pen === "M" ? `M${x(at)} ${y(value)}h0` : `L${x(at)} ${y(value)}`;
      pen = value === null ? "M" : "L";
    }
    drawing.append(svg("path", { class: `line ${color}`, d: path }));
  });
  return { drawing, table: () => numbers(series, over, when, write) };
}

function numbers(series, over, when, write) {
  const made = document.createElement("table"), head = made.createTHead().insertRow(), body = made.createTBody();
  for (const name of [over, ...series.map((s) => s.name || "value")]) head.append(Object.assign(document.createElement("th"), { scope: "col", textContent: name }));
  const rows = new Map();
  series.forEach((s, column) => s.points.forEach(([at, value]) => {
    if (!rows.has(at)) rows.set(at, series.map(() => null));
    rows.get(at)[column] = value;
  }));
  for (const [at, values] of [...rows].sort((one, other) => one[0] - other[0])) {
    const row = body.insertRow();
    row.append(Object.assign(document.createElement("th"), { scope: "row", textContent: when(at) }));
    for (const value of values) row.append(Object.assign(document.createElement("td"), { textContent: write(value), className: "n" }));
  }
  return made;
}

// Draws a chart into a <figure>, if it is another one than before; a table that is open stays open.
function plot(figure, spec) {
  const said = JSON.stringify(spec);
  if (figure.spec === said) return;
  figure.spec = said;
  const open = Boolean(figure.querySelector("details")?.open);
  const make = (tag, text, kind = "") => Object.assign(document.createElement(tag), { textContent: text, className: kind });
  const { drawing, table } = chart(spec);
  const legend = make("ul", "", "legend"), details = make("details", "");
  spec.series.forEach(({ name }, number) => {
    const key = svg("svg", { viewBox: "0 0 24 8", class: "key", "aria-hidden": "true" }, svg("path", { class: `line c${number % COLORS}`, d: "M1 4H23" }));
    const item = make("li", "");
    item.append(key, name);
    legend.append(item);
  });
  details.append(make("summary", "Numbers"));
  details.addEventListener("toggle", () => { if (details.open && !details.querySelector("table")) details.append(table()); });
  details.open = open;
  figure.className = "plot";
  figure.replaceChildren(make("figcaption", spec.title), drawing, ...(spec.series.length > 1 ? [legend] : []), details);
}

// In a row of a table: a share of the largest; and an interval of a share, with a line at one half.
function tinyBar(share) {
  return svg("svg", { viewBox: "0 0 60 8", class: "tiny", "aria-hidden": "true" }, svg("rect", { class: "c0", x: 0, y: 0, height: 8, width: Math.max(60 * share, 1) }));
}

function tinyInterval(low, share, high) {
  const [left, middle, right] = [low, share, high].map((value) => 1 + 98 * value);
  return svg("svg", { viewBox: "0 0 100 8", class: "tiny wide", "aria-hidden": "true" },
    svg("line", { class: "grid", x1: 50, x2: 50, y1: 0, y2: 8 }), svg("path", { class: "line c0", d: `M${left} 4H${right}` }), svg("circle", { class: "c0", cx: middle, cy: 4, r: 2.2 }));
}
