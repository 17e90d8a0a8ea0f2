// The page: what a model costs.

import { curves, memoryBar } from "./charts.js";
import { fields, gpus, guidePages, guides, models } from "./data.js";
import { diagram } from "./diagram.js";
import { imported } from "./families.js";
import { written } from "./facts.js";
import { seenShare, tokensShown } from "./masks.js";
import { count, numel, partOf, valueIn } from "./parts.js";
import { place } from "./placement.js";
import { parseJson } from "./python.js";
import { sentenceOf } from "./facts.js";
import { cachedBytes, cacheTotals, WIDTHS } from "./sizes.js";
import { change, choose, readValue, refresh, state } from "./state.js";
import { asPattern, fill, make, short, shortBytes, whole } from "./text.js";

const byId = (id) => document.getElementById(id);
const GROUPS = {
  Size: ["num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "gated_mlp", "hidden_act", "tie_word_embeddings", "max_position_embeddings"],
  Attention: ["attention_type", "num_attention_heads", "num_key_value_heads", "head_dim", "layer_types", "sliding_window", "attention_chunk_size", "qk_norm", "attn_output_gate", "attention_sinks", "num_kv_shared_layers"],
  "Latent attention": ["kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_topk", "index_n_heads", "index_head_dim"],
  Experts: ["mlp_layer_types", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts", "scoring_func"],
  Recurrence: ["linear_attention_type", "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim"],
  "Residual stream and positions": ["block_type", "norm_type", "position_embedding_type", "no_rope_layers", "num_mtp_layers"],
};
// Colours of mixers, in the order in which a model has them.
const COLOURS = ["#54a0e8", "#e8833a", "#4aa765", "#a371f7", "#d4a72c", "#e5534b", "#39c5cf", "#8c959f"];

// -- flags ---------------------------------------------------------------------------------------------------------

const shown = (value) => Array.isArray(value) ? asPattern(value) : value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);

function control(name) {
  const fact = fields[name], model = state.now.facts.model, changed = name in state.changes;
  const value = changed ? state.changes[name] : valueOfModel(model, name);
  const isList = Array.isArray(value) || fact.by_layer.startsWith("a list");
  const set = (text) => act(() => change(name, text === "" ? (changed && state.changes[name] === null ? undefined : null) : readValue(text)));
  let input;
  if (fact.takes === "true or false" || (fact.allowed && !isList)) {
    const words = fact.allowed ?? ["true", "false"];
    input = make("select", { onchange: (event) => set(event.target.value) }, make("option", { value: "" }, fact.default === null ? "–" : "default"),
      words.map((word) => make("option", { value: word, selected: String(value) === word }, word)));
  } else {
    const isWhole = /whole number/.test(fact.takes) && !isList;
    input = make("input", { value: shown(value), placeholder: "derived", inputmode: isWhole ? "numeric" : null, onchange: (event) => set(event.target.value) });
  }
  input.id = `flag-${name}`;
  input.title = fact.meaning;
  return make("label", { class: changed ? "changed" : "", title: fact.meaning }, make("span", {}, breakable(name)), input);
}
function valueOfModel(model, name) {
  const [group, key] = name.split(".");
  return key === undefined ? model[group] : model[group]?.[key];
}

function relevant(group, model) {
  const needs = {
    "Latent attention": model.attention_types.includes("latent") || "attention_type" in state.changes,
    Experts: model.num_experts !== null || GROUPS.Experts.some((name) => name in state.changes),
    Recurrence: model.recurrent_mixers.some((one) => one !== null) || GROUPS.Recurrence.some((name) => name in state.changes) || "layer_types" in state.changes,
  };
  return needs[group] ?? true;
}

function showFlags() {
  const { model } = state.now.facts;
  fill("flags", Object.entries(GROUPS).map(([group, names]) => {
    const open = relevant(group, model);
    const controls = names.filter((name) => name in fields).map(control);
    return open ? make("fieldset", {}, make("legend", {}, group), controls)
      : make("details", {}, make("summary", { class: "faint" }, group), make("fieldset", {}, controls));
  }));
  const changed = Object.entries(state.changes).map(([name, value]) => `${name}=${shown(value) || "left out"}`);
  byId("changes").textContent = changed.length ? `Changed: ${changed.join(", ")}` : "Nothing changed.";
}

function showRefusal() {
  const box = byId("refusal");
  box.hidden = state.refusal === null;
  if (state.refusal) box.replaceChildren(make("strong", {}, state.refusal.by), state.refusal.says, make("small", {}, " Shown beside this is the last model that works."));
}

// -- numbers -------------------------------------------------------------------------------------------------------

const setting = (id) => Number(byId(id).value);
const context = () => Math.round(2 ** setting("context"));
const ranks = () => ({ tp: 2 ** setting("tp"), ep: 2 ** setting("ep"), batch: 2 ** setting("batch"), context: context(), dtype: byId("dtype").value });

function card(title, value, note = "") {
  return make("div", { class: "card" }, make("span", {}, title), make("b", {}, value), make("small", {}, note));
}

function showNumbers() {
  const { counted, facts, flops } = state.now, chosen = ranks(), caches = state.now.caches(chosen.dtype), totals = cacheTotals(caches, chosen.context);
  const cost = flops(chosen.context), part = counted.leastActive < counted.active ? ` (${short(counted.leastActive)} at least)` : "";
  fill("cards",
    card("parameters", short(counted.total), whole(counted.total)),
    card("active for a token", short(counted.active), `${whole(counted.active)}${part}`),
    card("operations, decoding", short(cost.decode), `a token, at ${whole(chosen.context)}`),
    card("operations, prompt", short(cost.prompt), `a token; training ${short(cost.train)}`),
    card("cache grows by", totals.perToken ? shortBytes(totals.perToken) : "nothing", "for each token of a sequence"),
    card("cache and state", shortBytes(totals.held), `at ${whole(chosen.context)}: ${shortBytes(totals.windowed)} windows, ${shortBytes(totals.state)} state`),
    card("weights", shortBytes(counted.total * WIDTHS[chosen.dtype]), chosen.dtype),
    card("layers", String(facts.layers.length), `${new Set(state.now.kinds).size} kinds`));
  byId("context-out").textContent = whole(chosen.context);
  byId("batch-out").textContent = String(chosen.batch);
  byId("tp-out").textContent = String(chosen.tp);
  byId("ep-out").textContent = String(chosen.ep);
  showMemory(chosen, caches);
  fill("cache-chart", curves([
    { name: "all", colour: "--text", at: (length) => cacheTotals(caches, length).held },
    { name: "grows", colour: "--cache", dash: "6 4", at: (length) => cacheTotals(caches, length).growing },
    { name: "windows", colour: "--weights", dash: "6 4", at: (length) => cacheTotals(caches, length).windowed },
    { name: "state", colour: "--state", dash: "6 4", at: () => totals.state },
  ], chosen.context, shortBytes, "Bytes of cache and state of one sequence over its context"));
  fill("flops-chart", curves([
    { name: "decoding", colour: "--cache", at: (length) => flops(length).decode },
    { name: "prompt, a token of it", colour: "--weights", dash: "6 4", at: (length) => flops(length).prompt },
  ], chosen.context, short, "Operations of a token over its context", 10));
}

function showMemory(chosen, caches) {
  const { config, facts } = state.now, gpu = gpus[byId("gpu").value];
  let placed;
  try {
    placed = place(config, facts, caches, chosen);
  } catch (error) {
    fill("memory", make("p", { class: "verdict over", role: "status" }, sentenceOf(error) ?? error.message));
    return;
  }
  const workspace = chosen.batch * caches.reduce((sum, one) => sum + one.workspace, 0);
  const stateBytes = placed.state_bytes_per_rank;
  const { svg, legend, used } = memoryBar([
    { name: "weights", bytes: placed.bytes_per_rank, colour: "--weights" },
    { name: "gathered layers", bytes: placed.gathered_bytes, colour: "--beside" },
    { name: "cache", bytes: placed.cache_bytes_per_rank - stateBytes, colour: "--cache" },
    { name: "state", bytes: stateBytes, colour: "--state" },
  ].filter(({ bytes }) => bytes > 0), gpu.memory, shortBytes);
  const fits = used <= gpu.memory, name = byId("gpu").value;
  const each = placed.ranks > 1 ? `each of ${placed.ranks} ranks holds ${shortBytes(used)}` : `it holds ${shortBytes(used)}`;
  fill("memory",
    make("p", { class: `verdict ${fits ? "fits" : "over"}`, role: "status" }, `${fits ? "Fits" : "Does not fit"} ${shortBytes(gpu.memory)} of ${name}: ${each} of weights, cache and state.`),
    svg, legend,
    make("p", { class: "faint" }, `Activations and the engine's own buffers come on top${workspace ? `; decoding on a CPU adds ${shortBytes(workspace)} of work space` : ""}.`));
}

// -- layers --------------------------------------------------------------------------------------------------------

function mixerName(layer) {
  const attention = layer.block === "shared_block" ? "shared block" : layer.attention;
  return [attention, layer.recurrence].filter((name) => name !== null).join(" + ");
}

function kindsShown() {
  const { facts, words } = state.now, names = facts.layers.map((layer, index) => {
    const mixer = layer.block === "mlp_only" ? "MLP alone" : mixerName(layer);
    const seen = layer.softmax && words[index].context !== "full" ? `, ${words[index].context}` : "";
    return mixer + seen + (words[index].positions === "NoPE" ? ", NoPE" : "");
  });
  return { names, distinct: [...new Set(names)] };
}

function showRibbon() {
  const { facts, words, counted } = state.now, { names, distinct } = kindsShown(), caches = state.now.caches(byId("dtype").value);
  const colour = (name) => name === "MLP alone" ? "transparent" : COLOURS[distinct.indexOf(name) % COLOURS.length];
  fill("ribbon", facts.layers.map((layer, index) => make("button", {
    type: "button", role: "option", "aria-selected": String(index === state.layer), style: `background: ${colour(names[index])}`,
    title: `layer ${index}: ${names[index]}${words[index].mlp ? `; ${words[index].mlp}` : ""}; ${short(counted.layers[index].total)} parameters, ${shortBytes(cachedBytes(caches[index], context()))} at ${whole(context())} tokens`,
    "aria-label": `layer ${index}: ${names[index]}`,
    onclick: () => {
      state.layer = index;
      showRibbon();
      showLayer();
    },
  }, make("i", { class: !words[index].mlp ? "none" : layer.mlp === "sparse" ? "sparse" : "" }), String(index))));
  fill("legend", distinct.map((name) => make("span", {}, make("i", { style: `background: ${colour(name)}` }), `${names.filter((one) => one === name).length} × ${name}`)),
    make("span", {}, make("i", { style: "background: var(--mlp-line)" }), facts.layers.some((one) => one.mlp === "sparse") ? "below: MLP, striped: experts" : "below: MLP"));
}

function showLayer() {
  const { facts, words, counted, kinds } = state.now, layer = facts.layers[state.layer], caches = state.now.caches(byId("dtype").value)[state.layer];
  const alike = kinds.filter((kind) => kind === kinds[state.layer]).length;
  const costs = [`${short(counted.layers[state.layer].total)} parameters`];
  if (caches.perToken) costs.push(`${shortBytes(caches.perToken)} of cache per token`);
  if (caches.state) costs.push(`${shortBytes(caches.state)} of state`);
  byId("layer-title").textContent = `Layer ${state.layer} of ${facts.layers.length}`;
  const drawn = diagram(facts, layer, words[state.layer], {
    title: `layer ${state.layer}`, costs: costs.join(", "), more: alike > 1 ? `${alike} layers of the model are of this kind` : "",
  }, state.box, (box) => {
    state.box = box.id;
    showLayer();
    document.querySelector(`[data-box="${box.id}"]`)?.focus();
  });
  fill("diagram", drawn.svg);
  const box = drawn.boxes.find(({ id }) => id === state.box) ?? drawn.boxes.find(({ id }) => ["self_attn", "linear_attn", "mlp", "sparse"].includes(id));
  showDetail(box, layer);
  showMask(layer);
}

// A docstring: paragraphs, and what is indented as it stands.
function prose(text) {
  return text.split(/\n\s*\n/).map((block) => block.split("\n").every((line) => line.startsWith("    "))
    ? make("pre", { class: "code", tabindex: 0 }, block) : make("p", { class: "prose" }, block.replace(/\s*\n\s*/g, " ")));
}
// A name that may go on in another line behind each of its words.
const breakable = (name) => name.split(/(?<=[._])/).flatMap((piece, index) => index ? [make("wbr"), piece] : [piece]);

function showDetail(box, layer) {
  const { part, slugs, flags } = partOf(box), total = count(box.tensors);
  const rows = flags.map((name) => [name, valueIn(layer, name)]).filter(([, value]) => value !== null && value !== undefined);
  const unset = flags.filter((name) => !rows.some(([own]) => own === name));
  fill("detail",
    make("h2", {}, box.label),
    make("p", {}, total ? make("b", {}, `${whole(total)} parameters`) : "No parameters of its own", box.says ? ` – ${box.says}` : ""),
    part ? [make("p", { class: "faint" }, make("code", {}, part.name), " in ", make("code", {}, part.file)), ...prose(part.text)] : [],
    guidePages && slugs.length ? make("p", {}, "Guides: ", slugs.map((slug, index) => [index ? ", " : "", make("a", { href: `${guidePages}${slug}.html` }, guides[slug].title)]).flat()) : [],
    rows.length ? [make("h3", {}, "Flags"), make("table", {}, rows.map(([name, value]) => make("tr", { title: fields[name].meaning }, make("td", {}, make("code", {}, breakable(name))), make("td", {}, make("code", {}, breakable(shown(value)))))))] : [],
    unset.length ? make("details", {}, make("summary", { class: "faint" }, `${unset.length} flags that it could have`), make("table", {}, unset.map((name) => make("tr", {}, make("td", {}, make("code", {}, breakable(name))), make("td", {}, fields[name].meaning))))) : [],
    box.tensors.length ? make("details", { open: box.tensors.length < 9 }, make("summary", {}, `${box.tensors.length} tensors`), make("table", {}, box.tensors.map((one) => make("tr", {}, make("td", {}, make("code", {}, breakable(one.name))), make("td", { class: "number" }, one.shape.join(" × ")), make("td", { class: "number" }, whole(numel(one))))))) : []);
}

function showMask(layer) {
  const words = state.now.words[state.layer];
  if (!layer.softmax) {
    fill("mask", make("p", {}, layer.recurrence === null ? "This layer mixes no tokens: it is an MLP alone."
      : "Everything before, as far as its state of fixed size still holds it: no mask, and no cache that grows."));
    return;
  }
  const tokens = tokensShown(layer), cells = Math.min(tokens, 96), step = Math.ceil(tokens / cells), size = Math.ceil(tokens / step), pixel = Math.max(2, Math.floor(288 / size));
  const sink = layer.sinks ? 2 : 0, canvas = make("canvas", { width: (size + sink) * pixel, height: size * pixel, role: "img", "aria-label": `mask of layer ${layer.index}: ${words.context}` });
  const paint = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const [on, off, gold] = ["--mixer-line", "--ground", "--norm-line"].map((name) => style.getPropertyValue(name));
  paint.fillStyle = off;
  paint.fillRect(0, 0, canvas.width, canvas.height);
  for (let query = 0; query < size; query++) {
    for (let key = 0; key < size; key++) {
      paint.globalAlpha = seenShare(layer, query, key, step);
      paint.fillStyle = on;
      if (paint.globalAlpha > 0) paint.fillRect((key + sink) * pixel, query * pixel, pixel, pixel);
    }
    if (sink) {
      paint.globalAlpha = 1;
      paint.fillStyle = gold;
      paint.fillRect(0, query * pixel, pixel, pixel);
    }
  }
  const lines = [`Rows are ${whole(size * step)} queries, columns keys${step > 1 ? `, ${step} in a cell` : ""}. It sees: ${words.context || "nothing"}.`];
  if (layer.sinks) lines.push("The column on the left is the sink, which every query may attend to.");
  if (layer.layer_type === "indexed_attention") lines.push(`Of these, an indexer picks ${whole(layer.index_topk)} for each query by the text itself.`);
  if (layer.recurrence !== null && layer.block !== "shared_block") lines.push("Beside it, a recurrence keeps a state of all tokens.");
  fill("mask", canvas, lines.map((line) => make("p", { class: "faint" }, line)));
}

// -- all of it -----------------------------------------------------------------------------------------------------

function showTexts() {
  const changes = Object.entries(state.changes).filter(([name]) => !name.includes("."));
  const python = (value) => value === null ? "None" : value === true ? "True" : value === false ? "False" : typeof value === "object" ? JSON.stringify(value) : typeof value === "string" ? JSON.stringify(value) : String(value);
  const call = state.name in models && models[state.name].kind === "preset"
    ? `ZooConfig.preset(${[JSON.stringify(state.name), ...changes.map(([name, value]) => `${name}=${python(value)}`)].join(", ")})`
    : "ZooConfig.from_pretrained(\"folder\")  # with the config.json that the button copies";
  const command = state.name in models && models[state.name].kind === "preset" && !Object.keys(state.changes).length ? `\n\n# zoo inspect ${state.name} --context ${context()}` : "\n\n# zoo inspect config.json";
  byId("python").textContent = `from configuration_zoo import ZooConfig\n\nconfig = ${call}${command}`;
}

function show() {
  showRefusal();
  if (state.now === null) return;
  showFlags();
  showNumbers();
  showRibbon();
  showLayer();
  showTexts();
}
function act(work) {
  const focused = document.activeElement?.id;
  work();
  show();
  if (focused) byId(focused)?.focus();
}

function choosePreset(name) {
  act(() => choose(name));
  const model = models[name];
  byId("source").textContent = [model.source, model.published ? `published as ${short(model.published)} parameters` : "", model.note].filter(Boolean).join(". ");
}

// A config.json that somebody brings: zoo's own, or one of any family.
export function bring(text, name) {
  let raw;
  try {
    raw = parseJson(text);
  } catch (error) {
    return refuse(`${name} is no JSON: ${error.message}`);
  }
  if (raw === null || typeof raw !== "object" || Array.isArray(raw)) return refuse(`${name} is no config.json: it holds no keys and values.`);
  let own = text;
  if (raw.model_type !== "zoo") {
    try {
      own = written(imported(raw));
    } catch (error) {
      return refuse(`${name}: ${sentenceOf(error) ?? error.message}`);
    }
  }
  act(() => choose(name, own));
  byId("source").textContent = state.refusal ? "" : `From ${name}${own === text ? "" : `, of model_type ${raw.model_type}`}.`;
  byId("model").value = "";
  return true;
}
function refuse(says) {
  state.refusal = { by: "This file cannot be shown", says };
  showRefusal();
  return false;
}

function start() {
  const option = (name) => make("option", { value: name }, name);
  const of = (kind) => Object.keys(models).filter((name) => models[name].kind === kind);
  fill("model", make("option", { value: "", disabled: true }, "your file"), make("optgroup", { label: "Published models" }, of("preset").map(option)), make("optgroup", { label: "Families, their usual model" }, of("family").sort().map(option)));
  gpus["any of 80 GiB"] = { memory: 80 * 2 ** 30 };
  fill("gpu", Object.keys(gpus).map((name) => make("option", { value: name, selected: name === "h100" }, name.startsWith("any") ? name : `${name} (${shortBytes(gpus[name].memory)})`)));
  fill("other", Object.keys(fields).filter((name) => !["source_config", "source_extras", "surgery"].includes(name)).map(option));
  const about = () => {
    const fact = fields[byId("other").value];
    byId("meaning").textContent = `${fact.meaning} Takes ${fact.allowed ? fact.allowed.join(", ") : fact.takes}.`;
  };
  byId("other").addEventListener("change", about);
  byId("set").addEventListener("click", () => act(() => change(byId("other").value, readValue(byId("value").value))));
  byId("value").addEventListener("keydown", (event) => event.key === "Enter" && byId("set").click());
  byId("model").addEventListener("change", (event) => choosePreset(event.target.value));
  byId("reset").addEventListener("click", () => act(() => {
    state.changes = {};
    refresh();
  }));
  for (const id of ["context", "batch", "tp", "ep", "dtype", "gpu"]) byId(id).addEventListener("input", () => {
    showNumbers();
    showTexts();
    if (id === "dtype") showLayer();
  });
  byId("ribbon").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    state.layer = Math.min(Math.max(state.layer + step, 0), state.now.facts.layers.length - 1);
    showRibbon();
    showLayer();
  });
  const copy = (text) => {
    navigator.clipboard?.writeText(text).then(() => { byId("copied").textContent = "Copied."; }, () => { byId("copied").textContent = "The browser does not let a page copy: select the text."; });
  };
  byId("copy-config").addEventListener("click", () => {
    byId("python").textContent = written(state.now.config);
    copy(byId("python").textContent);
  });
  byId("copy-python").addEventListener("click", () => {
    showTexts();
    copy(byId("python").textContent);
  });
  const drop = byId("drop"), take = async (file) => file && bring(await file.text(), file.name);
  byId("file").addEventListener("change", (event) => take(event.target.files[0]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files[0]);
    });
  }
  byId("other").value = "clip_qkv";
  about();
  const wanted = new URLSearchParams(location.search).get("model") ?? "llama3-8b";
  byId("model").value = wanted in models ? wanted : "llama3-8b";
  choosePreset(byId("model").value);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
start();
