// One layer along the residual stream, between embedding and head; every box can be clicked.

import { topologies } from "./data.js";
import { boxesOf, endBoxes } from "./parts.js";
import { make, short } from "./text.js";

const WIDTH = 640, STREAM = 34, LEFT = 150, RIGHT = 556, CHARACTER = 6.7;

// `chosen`: the id of the box to mark; `choose(box)`: what a click does. Returns {svg, boxes}.
export function diagram(facts, layer, words, around, chosen, choose) {
  const parts = [], all = [], boxes = boxesOf(facts, layer, words), ends = endBoxes(facts);
  let y = 8;
  const box = (one, x, top, width, height, lines, centred = false) => {
    all.push(one);
    const text = lines.map((line, index) => make("text", {
      x: centred ? x + width / 2 : x + 10, y: top + (lines.length === 1 && !one.badges?.length ? height / 2 + 4 : 19 + 17 * index), "text-anchor": centred ? "middle" : "start",
      class: index === 0 && one.kind !== "badge" ? "bold" : "",
    }, line));
    const open = (event) => {
      if (event.type === "click" || event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        event.stopPropagation();
        choose(one);
      }
    };
    parts.push(make("g", {
      class: `box k-${one.kind}${one.id === chosen ? " chosen" : ""}`, tabindex: 0, role: "button", "data-box": one.id, "aria-label": lines.join(" "), onclick: open, onkeydown: open,
    }, make("rect", { x, y: top, width, height, rx: one.kind === "badge" ? 10 : 5 }), ...text));
  };
  const line = (d) => parts.push(make("path", { class: "line", d }));
  const plus = (at) => {
    parts.push(make("circle", { class: "plus", cx: STREAM, cy: at, r: 8 }));
    line(`M${STREAM - 4} ${at}h8M${STREAM} ${at - 4}v8`);
  };
  const arrow = (x, at, back = false) => `M${x} ${at}m${back ? "5 -4l-5 4l5 4" : "-5 -4l5 4l-5 4"}`;

  // A sub-layer: its label, widths and badges; the height that it takes.
  function sublayer(one, top) {
    const lines = wrapped(one.label, RIGHT - LEFT - 20), widths = Object.entries(one.widths ?? {});
    if (widths.length) lines.push(...wrapped(widths.map(([name, width]) => `${name} ${width.toLocaleString("en-US")}`).join("  ·  "), RIGHT - LEFT - 20));
    const rows = badgeRows(one.badges ?? [], RIGHT - LEFT - 20);
    const height = 12 + 17 * lines.length + 26 * rows.length;
    box(one, LEFT, top, RIGHT - LEFT, height, lines);
    rows.forEach((row, number) => {
      let x = LEFT + 10;
      for (const badge of row) {
        const width = badge.label.length * CHARACTER + 16;
        box(badge, x, top + 10 + 17 * lines.length + 26 * number, width, 21, [badge.label], true);
        x += width + 6;
      }
    });
    return height;
  }
  const group = (list, top) => list.reduce((at, one) => at + sublayer(one, at) + 8, top) - 8 - top;

  function branch({ part, before, after }) {
    const list = part === "mixer" ? boxes.mixer : boxes.mlp;
    if (!list.length) return;
    y += 10;
    const height = group(list, y), middle = y + height / 2, name = part === "mixer" ? "attn" : "mlp";
    let from = STREAM;
    if (before) {
      box(boxes[`${name}_norm`], 62, middle - 12, 66, 24, ["norm"], true);
      line(`M${STREAM} ${middle}H62${arrow(62, middle)}`);
      from = 128;
    }
    line(`M${from} ${middle}H${LEFT}${arrow(LEFT, middle)}`);
    join(middle, y + height + 16, after ? boxes[`${name}_output_norm`] : null);
  }
  function join(middle, back, norm) {
    let end = RIGHT;
    if (norm) {
      box(norm, RIGHT + 8, middle - 12, 54, 24, ["norm"], true);
      line(`M${RIGHT} ${middle}h8`);
      end = RIGHT + 62;
    }
    line(`M${end} ${middle}H${WIDTH - 12}V${back}H${STREAM + 8}${arrow(STREAM + 8, back, true)}`);
    plus(back);
    y = back + 10;
  }
  function together({ together: branches, one_norm: single }) {
    y += 10;
    const middles = [], start = y;
    for (const { part } of branches) {
      const list = part === "mixer" ? boxes.mixer : boxes.mlp, height = group(list, y);
      middles.push(y + height / 2);
      y += height + 10;
    }
    const places = single ? [(start + y) / 2] : middles;
    places.forEach((at, number) => {
      box(boxes[number ? "mlp_norm" : "attn_norm"], 58, at - 12, 56, 24, ["norm"], true);
      line(`M${STREAM} ${at}H58${arrow(58, at)}`);
    });
    middles.forEach((at) => line(`M114 ${single ? places[0] : at}h12V${at}H${LEFT}${arrow(LEFT, at)}`));
    line(`M${RIGHT} ${middles[0]}H${WIDTH - 12}V${middles.at(-1)}`);
    join(middles.at(-1), y + 8, null);
  }
  let onStream = 0;
  const NAMES = layer.block === "post_norm" ? ["attn_output_norm", "mlp_output_norm"] : ["attn_norm", "mlp_norm"];

  box(ends.embedding, 8, y, WIDTH - 16, 30, [ends.embedding.label]);
  y += 30;
  const top = y;
  y += 12;
  const title = `${around.title}`;
  parts.push(make("text", { x: LEFT, y: y + 8, class: "bold" }, title));
  parts.push(make("text", { x: LEFT, y: y + 25, class: "faint" }, around.costs));
  y += 34;
  box(boxes.block, LEFT, y, Math.min(boxes.block.label.length * CHARACTER + 18, RIGHT - LEFT), 21, [clipped(boxes.block.label, RIGHT - LEFT)], true);
  y += 21;
  if (boxes.shared) {
    y += 10;
    const height = sublayer(boxes.shared, y), middle = y + height / 2;
    line(`M${STREAM} ${middle}H${LEFT}${arrow(LEFT, middle)}`);
    join(middle, y + height + 14, null);
  }
  for (const piece of topologies[layer.block]) {
    if (piece.norm) {
      y += 8;
      box(boxes[NAMES[onStream++]], 8, y, 54, 24, ["norm"], true);
      y += 26;
    } else if (piece.together) together(piece);
    else branch(piece);
  }
  for (const one of boxes.beside) {
    y += 8;
    const height = sublayer(one, y), middle = y + height / 2;
    line(`M${STREAM} ${middle}H${LEFT}${arrow(LEFT, middle)}`);
    join(middle, y + height + 14, null);
  }
  y += 6;
  if (around.more) {
    parts.push(make("text", { x: LEFT, y: y + 10, class: "faint" }, around.more));
    y += 22;
  }
  if (ends.norm) {
    box(ends.norm, 8, y, ends.norm.label.length * CHARACTER + 16, 24, [ends.norm.label], true);
    y += 32;
  }
  const bottom = y;
  box(ends.head, 8, y, WIDTH - 16, 30, [ends.head.label]);
  y += 30;
  if (ends.further) {
    y += 8;
    box(ends.further, 8, y, WIDTH - 16, 30, [ends.further.label]);
    y += 30;
  }
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${y + 8}`, role: "group", "aria-label": `${title} along the residual stream`, style: `width: ${WIDTH}px` });
  svg.append(make("path", { class: "line", d: `M${STREAM} ${top}V${bottom}`, "stroke-width": 2.5, style: "stroke-width: 2.5" }), ...parts);
  return { svg, boxes: all };
}

const clipped = (text, width) => text.length * CHARACTER > width - 16 ? `${text.slice(0, Math.floor((width - 24) / CHARACTER))}…` : text;

function wrapped(text, width) {
  const most = Math.floor(width / CHARACTER), lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1) && lines.at(-1).length + word.length + 1 > most) lines.push(word);
    else lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
  }
  return lines;
}

function badgeRows(badges, width) {
  const rows = [];
  let across = Infinity;
  for (const one of badges.map((badge) => ({ ...badge, label: clipped(badge.label, width) }))) {
    const size = one.label.length * CHARACTER + 22;
    if (across + size > width) {
      rows.push([]);
      across = 0;
    }
    rows.at(-1).push(one);
    across += size;
  }
  return rows;
}

export const layerCosts = (parameters, cache) => [
  `${short(parameters)} parameters`,
].concat(cache).join(", ");
