// A config of rules.js as plain values: what sizes.js, the diagram and the masks read.

import * as py from "./python.js";
import { ZooConfig } from "./rules.js";

const ask = (config, name, ...given) => py.call(py.attr(config, name), ...given);
const get = (config, name) => py.toJson(py.attr(config, name));

// A ZooConfig from what parseJson made of a config.json, derived and checked; throws its refusal.
export function configOf(values) {
  const { transformers_version, zoo_version, source_config, source_extras, surgery, ...own } = values;
  return py.call(ZooConfig, py.keywords([...py.fromJson(own)]));
}

// The sentence of a refusal: ZooConfig's, without the names of the classes that passed it on. null for a fault of ours.
export function sentenceOf(error) {
  if (!(error instanceof py.Instance)) return null;
  let last = error;
  while (last.dict.get("__cause__") && last.cls.name.startsWith("Strict")) last = last.dict.get("__cause__");
  return py.text(last);
}

// What config.json says of a config: what differs from the defaults and cannot be derived.
export const written = (config) => py.jsonText(ask(config, "to_diff_dict"));

// {model, layers}: all fields of the model, and of each layer its own beside what they come to there.
export function factsOf(config) {
  const model = py.toJson(config.dict);
  const spec = config.dict.get("_heterogeneity_spec") ?? new Map();
  delete model._heterogeneity_spec;
  const views = py.attr(config, "per_layer_config");
  const whole = ask(config, "outside_layers");
  const lists = Object.fromEntries(["attention_mixers", "recurrent_mixers", "block_types", "attention_types", "shared_block_layers", "softmax_layers"]
    .map((name) => [name, get(whole, name)]));
  Object.assign(model, lists, { output_width: get(whole, "output_width"), value_source: get(whole, "value_source") });
  const layers = views.map((view, index) => layerOf(view, index, { ...model, ...py.toJson(spec.get(index) ?? new Map()) }, lists));
  return { model, layers, further: furtherOf(config, model) };
}

function layerOf(view, index, fields, lists) {
  const softmax = lists.softmax_layers.includes(index), recurrence = lists.recurrent_mixers[index];
  const layer = {
    ...fields, index, softmax, recurrence,
    layer_type: fields.layer_types[index],
    block: lists.block_types[index],
    mlp: fields.mlp_layer_types[index],
    attention: lists.attention_mixers[index],
    mechanism: softmax ? lists.attention_types[index] : null,
    settings: recurrence === null ? null : py.toJson(ask(view, "linear_settings", index)),
    value_width: get(view, "value_width"),
    turn: lists.shared_block_layers.indexOf(index),
    pattern: ask(view, "sparse_pattern_of", index),
  };
  if (softmax) {
    layer.normed = fields.qk_norm !== null && ask(view, "has_qk_norm", index);
    layer.sinks = ask(view, "has_attention_sinks", index);
    layer.mixes = ask(view, "mixes_values", index);
    layer.tied_rope = ask(view, "tied_rope_width", index);
    layer.rotates = ask(view, "rope_table_of", index) !== null;
    const table = get(view, "rope_tables")[ask(view, "rope_table_of", index)];
    layer.turning = table ? 2 * Math.trunc(layer.head_dim * (table.partial_rotary_factor ?? 1)) : 0;
    layer.indexes = layer.layer_type === "indexed_attention" && ask(view, "indexer_of", index) === index;
    layer.shares = lists.attention_mixers[index] === "shared_key_value";
  }
  return layer;
}

// The layers that predict further tokens: {count, projections, layer}, null for none.
function furtherOf(config, model) {
  if (!model.num_mtp_layers) return null;
  const one = ask(config, "mtp_layer_config");
  const { layers } = factsOf(one);
  return { count: model.num_mtp_layers, ends: model.mtp.projection === "one_for_all" ? 1 : model.num_mtp_layers, layer: layers[0] };
}
