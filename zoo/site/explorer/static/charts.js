// Curves over context and stacked bars of memory.

import { make, short } from "./text.js";

const WIDTH = 460, HEIGHT = 250, LEFT = 62, RIGHT = 12, TOP = 14, BOTTOM = 34;

// `curves`: [{name, colour, at(context)}]; both axes in powers; `context` is marked and its values are said.
export function curves(list, context, write, label, base = 2) {
  const contexts = Array.from({ length: 41 }, (_, place) => Math.round(2 ** (10 + place / 4)));
  const drawn = list.map((curve) => ({ ...curve, values: contexts.map(curve.at) })).filter(({ values }) => values.some((value) => value > 0));
  const all = drawn.flatMap(({ values }) => values.filter((value) => value > 0));
  if (!all.length) return [make("p", { class: "faint" }, "Nothing: no layer keeps anything.")];
  const low = Math.floor(Math.log2(Math.min(...all)) - 0.2), high = Math.max(Math.ceil(Math.log2(Math.max(...all)) + 0.2), low + 3);
  const x = (value) => LEFT + (Math.log2(value) - 10) / 10 * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + (high - Math.log2(value)) / (high - low) * (HEIGHT - TOP - BOTTOM);
  const parts = [];
  for (const power of [10, 12, 14, 16, 18, 20]) {
    const at = x(2 ** power);
    parts.push(make("path", { class: "grid", d: `M${at} ${TOP}V${HEIGHT - BOTTOM}` }), make("text", { x: at, y: HEIGHT - BOTTOM + 16, "text-anchor": power === 20 ? "end" : "middle", class: "faint" }, `${2 ** (power - 10) >= 1024 ? "1M" : `${2 ** (power - 10)}K`}`));
  }
  for (const value of marks(low, high, base)) {
    parts.push(make("path", { class: "grid", d: `M${LEFT} ${y(value)}H${WIDTH - RIGHT}` }), make("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end", class: "faint" }, write(value)));
  }
  for (const { values, colour, dash } of drawn) {
    const points = contexts.map((one, place) => [one, values[place]]).filter(([, value]) => value > 0).map(([one, value]) => `${x(one).toFixed(1)},${y(value).toFixed(1)}`);
    parts.push(make("polyline", { points: points.join(" "), fill: "none", stroke: `var(${colour})`, "stroke-width": dash ? 1.8 : 2.6, "stroke-dasharray": dash ?? null }));
  }
  const at = x(Math.min(Math.max(context, 1024), 2 ** 20));
  parts.push(make("path", { class: "line", d: `M${at} ${TOP}V${HEIGHT - BOTTOM}`, "stroke-dasharray": "3 3" }));
  parts.push(make("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 4, "text-anchor": "middle", class: "faint" }, "tokens of context"));
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, style: "width: 100%" }, ...parts);
  const legend = make("div", { class: "legend" }, drawn.map(({ name, colour, at: value }) => make("span", {}, make("i", { style: `background: var(${colour})` }), `${name}: ${write(value(context))}`)));
  return [svg, legend];
}

// Round numbers between two powers of two: powers of two themselves, or 1, 2 and 5 times powers of ten.
function marks(low, high, base) {
  const all = [];
  if (base === 2) for (let power = low; power <= high; power++) all.push(2 ** power);
  else for (let power = 0; power < 19; power++) for (const first of [1, 2, 5]) all.push(first * 10 ** power);
  const inside = all.filter((value) => value >= 2 ** low && value <= 2 ** high);
  return inside.filter((_, place) => place % Math.ceil(inside.length / 6) === 0);
}

// Parts of memory beside each other against what there is; [{name, bytes, colour}].
export function memoryBar(parts, limit, write) {
  const used = parts.reduce((sum, part) => sum + part.bytes, 0), most = Math.max(used, limit) * 1.02;
  let x = 0;
  const bars = parts.map(({ bytes, colour, name }) => {
    const width = bytes / most * 800, bar = make("rect", { x, y: 6, width: Math.max(width, 0), height: 26, fill: `var(${colour})` }, make("title", {}, `${name}: ${write(bytes)}`));
    x += width;
    return bar;
  });
  const end = limit / most * 800;
  const svg = make("svg", { viewBox: "0 0 800 52", role: "img", "aria-label": `${write(used)} of ${write(limit)} used`, style: "width: 100%" },
    make("rect", { x: 0.5, y: 6, width: end, height: 26, fill: "none", class: "frame" }), ...bars,
    make("path", { d: `M${end} 1V38`, stroke: "var(--text)", "stroke-width": 2 }),
    make("text", { x: Math.min(Math.max(end, 60), 740), y: 50, "text-anchor": "middle", class: "faint" }, `${write(limit)}`));
  const legend = make("div", { class: "legend" }, parts.map(({ name, bytes, colour }) => make("span", {}, make("i", { style: `background: var(${colour})` }), `${name} ${write(bytes)}`)));
  return { svg, legend, used };
}
export { short };
