// What is chosen and changed in the page, and what ZooConfig makes of it.

import { fields, models } from "./data.js";
import { configOf, factsOf, sentenceOf } from "./facts.js";
import { warnings } from "./library.js";
import * as py from "./python.js";
import { flops, layerCache, layerFlops, parameters } from "./sizes.js";
import { forDepth } from "./text.js";
import { kinds_of, layer_words } from "./words.js";

export const state = { name: null, given: {}, changes: {}, layer: 0, box: null, refusal: null, now: null };

export function choose(name, text = models[name].config) {
  Object.assign(state, { name, given: py.parseJson(text), changes: {}, layer: 0, box: null });
  return refresh();
}

// Sets a field to what was written; undefined puts back what the model has, null leaves it out to be derived.
export function change(name, value) {
  if (value === undefined) delete state.changes[name];
  else state.changes[name] = value;
  return refresh();
}

const listed = (name) => fields[name]?.by_layer.startsWith("a list");

// The keys of config.json with the changes: lists over layers follow the number of layers.
export function values() {
  const found = structuredClone(state.given), depth = state.changes.num_hidden_layers, before = found.num_hidden_layers;
  if (Number.isInteger(depth) && depth > 0 && depth < 4097 && depth !== before) {
    for (const [name, value] of Object.entries(found)) {
      if (listed(name) && Array.isArray(value) && value.length === before) found[name] = forDepth(value, depth);
    }
    if (found.per_layer_config) found.per_layer_config = Object.fromEntries(Object.entries(found.per_layer_config).filter(([index]) => Number(index) < depth));
  }
  for (const [name, value] of Object.entries(state.changes)) {
    const [group, key] = name.split(".");
    if (key !== undefined) found[group] = { ...found[group], [key]: value };
    else if (value === null) delete found[name];
    else found[name] = value;
  }
  return found;
}

// Builds the model anew; a refused one leaves what was there, with the refusal beside it.
export function refresh() {
  warnings.length = 0;
  try {
    const config = configOf(values()), facts = factsOf(config);
    const [kinds] = py.call(kinds_of, config), mixers = py.attr(config, "mixer_types"), views = py.attr(config, "per_layer_config");
    const words = views.map((view, index) => py.toJson(py.call(layer_words, view, mixers[index], index, !["mixer_only", "shared_block"].includes(facts.layers[index].block))));
    const now = { config, facts, words, kinds, counted: parameters(facts), notes: [...warnings] };
    now.parts = facts.layers.map((layer) => layerFlops(layer, facts));
    now.caches = (dtype) => facts.layers.map((layer) => layerCache(layer, dtype));
    now.flops = (context) => flops(facts, context, now.parts);
    state.now = now;
    state.layer = Math.min(state.layer, facts.layers.length - 1);
    state.refusal = null;
  } catch (error) {
    const sentence = sentenceOf(error);
    state.refusal = sentence === null ? { by: "The explorer cannot reckon this", says: error.message } : { by: "ZooConfig refuses this", says: sentence };
    if (sentence === null) console.warn(error);
  }
  return state;
}

// A value as somebody writes it: JSON, or a bare word.
export function readValue(text) {
  const trimmed = text.trim();
  if (trimmed === "") return null;
  if (/^(None|null)$/.test(trimmed)) return null;
  if (/^(True|False)$/.test(trimmed)) return trimmed === "True";
  try {
    return py.parseJson(trimmed);
  } catch {
    return trimmed;
  }
}
