// Numbers and lists in few characters.

// 1234567 -> "1.23M", as description_zoo/numbers.py writes it.
export function short(number, base = 1000, units = ["", "K", "M", "B", "T"]) {
  let index = 0, left = number;
  while (Math.abs(left) >= base && index < units.length - 1) {
    left /= base;
    index += 1;
  }
  return `${Number(significant(left, left >= 100 || index === 0 ? Math.max(String(Math.trunc(left)).length, 1) : 3))}${units[index]}`;
}
// So many digits; from the middle between two numbers to the even one, as Python rounds.
function significant(value, digits) {
  const near = value.toPrecision(digits), below = (value * (1 - 1e-9)).toPrecision(digits);
  const isTie = near !== below && Number(near) + Number(below) === 2 * value;
  return isTie && /[02468]$/.test(below.replace(".", "")) ? below : near;
}
export const shortBytes = (number) => short(number, 1024, [" B", " KiB", " MiB", " GiB", " TiB"]);
export const whole = (number) => number.toLocaleString("en-US");

// A list over layers as ZooConfig takes it: "3*linear_attention, full_attention" where that repeats.
export function asPattern(list) {
  const period = repeating(list) ?? list.length;
  const runs = [];
  for (const word of list.slice(0, period)) {
    if (runs.length && runs.at(-1)[1] === word) runs.at(-1)[0] += 1;
    else runs.push([1, word]);
  }
  return runs.map(([count, word]) => count === 1 || runs.length === 1 ? String(word ?? "None") : `${count}*${word ?? "None"}`).join(", ");
}

// The shortest part of a list that, again and again, is all of it; null where only the whole is.
function repeating(list) {
  for (let period = 1; period < list.length; period++) {
    if (list.every((word, index) => word === list[index % period])) return period;
  }
  return null;
}

// A list for another number of layers: cut off, or gone on with as its last layers repeat.
export function forDepth(list, depth) {
  let period = 1;
  while (period < list.length / 2 && !list.slice(-2 * period, -period).every((word, index) => word === list.at(index - period))) period += 1;
  if (period >= list.length / 2) period = 1;
  const found = list.slice(0, depth);
  while (found.length < depth) found.push(found[found.length - period]);
  return found;
}

// Elements of HTML and SVG: make("div", {class: "card"}, "text", child).
const SVG = ["svg", "g", "rect", "path", "text", "circle", "line", "title", "polyline"];
export function make(name, attributes = {}, ...children) {
  const made = SVG.includes(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}
export const fill = (id, ...children) => document.getElementById(id).replaceChildren(...children.flat());
