// The page in which the bundled model works.

import { draw, Llama, readSafetensors, softmax, top } from "./llama.js";
import { configs, tokenizer as tokenizerJson, weights } from "./stories.js";
import { fill, make, whole } from "./text.js";
import { Tokenizer } from "./tokenizer.js";

const byId = (id) => document.getElementById(id);
// Maps of more tokens are too fine to be read, and lists of them too long.
const SHOWN = 96;

const tokenizer = new Tokenizer(tokenizerJson), made = {};
const now = { steps: [], typed: 0, token: 0, layer: 0, head: 0, timer: null };
let model, config;
function choose(name) {
  const bytes = () => Uint8Array.from(atob(weights[name]), (one) => one.charCodeAt(0));
  model = made[name] ??= new Llama(configs[name], readSafetensors(bytes()));
  config = model.config;
  const size = Object.values(model.tensors).reduce((sum, { data }) => sum + data.length, 0);
  const shape = `${whole(size)} parameters, ${config.num_hidden_layers} layers, ${config.num_attention_heads} heads on ${config.num_key_value_heads} key-value heads`;
  byId("about").textContent = config.num_experts
    ? `Trained on the stories that come with zoo (\`zoo train examples/routed.yaml\`): ${shape}, a gate on each head, ${config.num_experts_per_tok} of ${config.num_experts} experts for a token. Run in this page in plain JavaScript.`
    : `stories260K (Andrej Karpathy, MIT): a trained Llama of ${shape}, run in this page in plain JavaScript. It tells children's stories. It has no experts, so nothing is routed: the other model has.`;
  byId("routing-panel").hidden = !config.num_experts;
  Object.assign(now, { layer: 0, head: 0 });
}

// Runs what differs from the tokens of before.
function run(tokens) {
  now.steps = model.run(tokens);
  now.typed = tokens.length;
  now.token = tokens.length - 1;
}
function typed() {
  stop();
  const tokens = tokenizer.encode(byId("text").value), most = config.max_position_embeddings;
  byId("limit").textContent = tokens.length > most ? `The model sees ${most} tokens; the last ${tokens.length - most} are left out.` : "";
  run(tokens.slice(0, most));
  show();
}
function write() {
  if (now.steps.length >= config.max_position_embeddings) {
    byId("limit").textContent = `The model sees ${config.max_position_embeddings} tokens, no more.`;
    return stop();
  }
  const next = draw(now.steps.at(-1).logits, Number(byId("temperature").value));
  now.steps.push(model.step(next));
  now.token = now.steps.length - 1;
  show();
  // The end of a text, or the beginning of another.
  if (next === config.eos_token_id || next === config.bos_token_id) stop();
}
function stop() {
  clearInterval(now.timer);
  now.timer = null;
  byId("stop").disabled = true;
}

function showTokens() {
  const from = Math.max(0, now.steps.length - SHOWN);
  fill("tokens", from ? make("span", { class: "faint" }, `… ${from} tokens before`) : [], now.steps.slice(from).map(({ token }, place) => make("button", {
    type: "button", class: place + from >= now.typed ? "new" : "", "aria-pressed": String(place + from === now.token), title: `token ${token}, place ${place + from}`,
    onclick: () => {
      now.token = place + from;
      show();
    },
  }, tokenizer.shown(token))));
  const tokens = now.steps.map(({ token }) => token);
  fill("story", make("span", {}, tokenizer.decode(tokens.slice(0, now.typed))), make("b", {}, tokenizer.decode(tokens).slice(tokenizer.decode(tokens.slice(0, now.typed)).length)));
}

function bars(id, probabilities) {
  const best = top(probabilities, 10), most = best[0][1];
  fill(id, best.map(([token, share]) => [
    make("code", {}, tokenizer.shown(token)), make("i", { style: `width: ${(share / most * 100).toFixed(1)}%` }), make("span", {}, `${(share * 100).toFixed(1)} %`),
  ]).flat());
}

function showPredictions() {
  const step = now.steps[now.token], temperature = Number(byId("temperature").value) || 1;
  byId("next-title").textContent = `After "${tokenizer.shown(step.token)}"`;
  bars("probabilities", softmax(step.logits, temperature));
  const next = now.steps[now.token + 1]?.token;
  const rows = step.streams.map((stream, layer) => {
    const shares = softmax(model.read(stream));
    return make("tr", {}, make("th", { scope: "row" }, layer === 0 ? "embedding" : `layer ${layer - 1}`),
      top(shares, 5).map(([token, share]) => make("td", { style: `background: color-mix(in srgb, var(--weights) ${(share * 70).toFixed(0)}%, transparent)`, title: `${(share * 100).toFixed(2)} %` }, `${tokenizer.shown(token)} ${(share * 100).toFixed(0)}`)),
      next === undefined ? [] : make("td", {}, `${tokenizer.shown(next)} ${(shares[next] * 100).toFixed(0)}`));
  });
  fill("lens", make("table", { class: "lens" }, make("tr", {}, make("th", {}, ""), make("th", { colspan: 5 }, "most probable, in percent"), next === undefined ? [] : make("th", {}, "came")), rows));
}

// A square of shares, the queries from `from` on; the row of the chosen token is marked.
function paint(canvas, layer, head, pixel) {
  const from = Math.max(0, now.steps.length - SHOWN), size = now.steps.length - from;
  canvas.width = canvas.height = size * pixel;
  const ink = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  ink.fillStyle = style.getPropertyValue("--ground");
  ink.fillRect(0, 0, canvas.width, canvas.height);
  ink.fillStyle = style.getPropertyValue("--on");
  for (let query = 0; query < size; query++) {
    const shares = now.steps[query + from].attention[layer][head];
    for (let key = 0; key <= query; key++) {
      ink.globalAlpha = Math.sqrt(shares[key + from]);
      ink.fillRect(key * pixel, query * pixel, pixel, pixel);
    }
  }
  ink.globalAlpha = 1;
  if (pixel > 2 && now.token >= from) {
    ink.strokeStyle = style.getPropertyValue("--cache");
    ink.lineWidth = Math.max(1, pixel / 6);
    ink.strokeRect(0.5, (now.token - from) * pixel + 0.5, (now.token - from + 1) * pixel - 1, pixel - 1);
  }
  return canvas;
}

// How far the gate of a head is open for the chosen token.
function gateOf(layer, head) {
  const open = now.steps[now.token].open[layer];
  return open ? make("small", {}, ` gate ${(open[head] * 100).toFixed(0)} %`) : [];
}

function showMaps() {
  const heads = config.num_attention_heads;
  fill("maps", model.layers.map((_, layer) => [
    make("h3", {}, `layer ${layer}`),
    make("div", { class: "maps" }, Array.from({ length: heads }, (_, head) => {
      const choose = (event) => {
        if (event.type === "keydown" && event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        Object.assign(now, { layer, head });
        show();
      };
      return make("figure", { tabindex: 0, role: "button", "aria-pressed": String(layer === now.layer && head === now.head), "aria-label": `layer ${layer}, head ${head}`, onclick: choose, onkeydown: choose },
        paint(make("canvas", { role: "img", "aria-label": `attention of layer ${layer}, head ${head}` }), layer, head, 2), make("figcaption", {}, `head ${head}`, gateOf(layer, head)));
    })),
  ]).flat());
  byId("map-title").textContent = `Layer ${now.layer}, head ${now.head}`;
  const from = Math.max(0, now.steps.length - SHOWN), size = now.steps.length - from, pixel = Math.max(3, Math.floor(420 / size));
  const canvas = paint(make("canvas", { role: "img", "aria-label": `attention of layer ${now.layer}, head ${now.head}, enlarged` }), now.layer, now.head, pixel);
  const says = make("p", { class: "faint" }, "Point at a cell.");
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect(), key = Math.floor((event.clientX - box.left) / box.width * size), query = Math.floor((event.clientY - box.top) / box.height * size);
    if (key < 0 || query < 0 || key > query || query >= size) return;
    const share = now.steps[query + from].attention[now.layer][now.head][key + from];
    says.textContent = `"${tokenizer.shown(now.steps[query + from].token)}" reads "${tokenizer.shown(now.steps[key + from].token)}" with ${(share * 100).toFixed(1)} %`;
  });
  const shares = now.steps[now.token].attention[now.layer][now.head];
  fill("map", canvas, says, make("p", { class: "faint" }, `"${tokenizer.shown(now.steps[now.token].token)}" reads most: ${top(shares, 4).map(([place, share]) => `"${tokenizer.shown(now.steps[place].token)}" ${(share * 100).toFixed(0)} %`).join(", ")}`));
}

function showGates() {
  const { gates } = now.steps[now.token], cell = 3, high = 14, channels = gates[0].length;
  const canvas = make("canvas", { width: channels * cell, height: gates.length * (high + 2), role: "img", "aria-label": "gates of the MLP of each layer" });
  const ink = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  gates.forEach((row, layer) => row.forEach((value, channel) => {
    ink.globalAlpha = Math.min(Math.sqrt(Math.abs(value)), 1);
    ink.fillStyle = style.getPropertyValue(value > 0 ? "--weights" : "--cache");
    ink.fillRect(channel * cell, layer * (high + 2), cell, high);
  }));
  const open = gates.map((row) => row.filter((value) => value > 0.1).length);
  fill("gates", canvas, make("p", { class: "faint" }, `Above 0.1, of ${channels}: ${open.map((count, layer) => `layer ${layer} ${count}`).join(", ")}.`));
}

// Which experts each of the last tokens went to.
function showRouting() {
  if (!config.num_experts) return;
  const from = Math.max(0, now.steps.length - SHOWN), steps = now.steps.slice(from), cell = 12;
  const style = getComputedStyle(document.documentElement), count = config.num_experts;
  fill("routing", model.layers.map((_, layer) => {
    const canvas = make("canvas", { width: steps.length * cell, height: count * cell, role: "img", "aria-label": `experts of layer ${layer}` });
    const ink = canvas.getContext("2d");
    ink.fillStyle = style.getPropertyValue("--weights");
    steps.forEach(({ routed }, place) => routed[layer].forEach((share, expert) => {
      ink.globalAlpha = share;
      ink.fillRect(place * cell, expert * cell, cell - 1, cell - 1);
    }));
    ink.globalAlpha = 1;
    ink.strokeStyle = style.getPropertyValue("--cache");
    ink.strokeRect((now.token - from) * cell - 0.5, 0.5, cell, count * cell - 1);
    const chosen = top(now.steps[now.token].routed[layer], config.num_experts_per_tok);
    return [make("h3", {}, `layer ${layer}`), canvas, make("p", { class: "faint" }, `"${tokenizer.shown(now.steps[now.token].token)}" goes to ${chosen.map(([expert, share]) => `expert ${expert} with ${(share * 100).toFixed(1)} %`).join(", ")}.`)];
  }).flat());
}

function show() {
  showTokens();
  showPredictions();
  showMaps();
  showGates();
  showRouting();
}

let waiting = null;
byId("text").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(typed, 150);
});
byId("next").addEventListener("click", () => {
  stop();
  write();
});
byId("more").addEventListener("click", () => {
  stop();
  byId("stop").disabled = false;
  now.timer = setInterval(write, 80);
});
byId("stop").addEventListener("click", stop);
byId("back").addEventListener("click", typed);
byId("temperature").addEventListener("input", () => {
  byId("temperature-out").textContent = Number(byId("temperature").value).toFixed(1);
  showPredictions();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
byId("which").addEventListener("change", () => {
  choose(byId("which").value);
  typed();
});
choose(byId("which").value);
typed();
