// What one of many ranks holds, as zoo/cli/placement.py reckons it: the plans of the config, applied to shapes.

import * as py from "./python.js";
import { cache_parts, check_sizes, plans_of, share } from "./plans.js";
import { cachedBytes, WIDTHS } from "./sizes.js";
import { modelTensors } from "./tensors.js";

const sum = (values) => values.reduce((one, other) => one + other, 0);
const part = (plans, tensor, tp, ep, groups) => py.call(share, plans, tensor.name, tensor, tp, ep, groups) * widthOf(tensor);
let width = 2;
const widthOf = (tensor) => tensor.wide ? 4 : width;

// Bytes of weights and cache on the fullest rank; throws the sentence for sizes that the model does not divide into.
export function place(config, facts, caches, { tp, ep, context, batch, dtype }) {
  py.call(check_sizes, config, tp, ep);
  width = WIDTHS[dtype];
  const groups = Math.max(1, Math.floor(ep / tp));
  const plan = py.attr(config, "base_model_tp_plan"), plans = py.call(plans_of, config, ep);
  const parts = caches.map((_, index) => [...py.call(cache_parts, config, plan, index, tp)]);
  const bytes = { dense: 0, experts: 0 };
  const tensors = modelTensors(facts);
  for (const tensor of tensors) {
    bytes[tensor.name.includes(".mlp.experts.") ? "experts" : "dense"] += part(plans, tensor, tp, ep, groups);
  }
  return {
    ranks: Math.max(tp, ep), fsdp: groups,
    bytes: sum(tensors.map((tensor) => tensor.shape.reduce((one, other) => one * other, 1) * widthOf(tensor))),
    bytes_per_rank: bytes.dense + bytes.experts, dense_bytes_per_rank: bytes.dense, expert_bytes_per_rank: bytes.experts,
    gathered_bytes: groups > 1 ? gathered(plans, facts, tensors, tp, ep) : 0,
    cache_bytes_per_rank: batch * sum(caches.map((cache, index) => Math.floor((cachedBytes(cache, context) - cache.state) / parts[index][0]) + Math.floor(cache.state / parts[index][1]))),
    state_bytes_per_rank: batch * sum(caches.map((cache, index) => Math.floor(cache.state / parts[index][1]))),
  };
}

// Bytes on top while FSDP computes: the largest layer or the embedding, without experts, and head and norm.
function gathered(plans, facts, tensors, tp, ep) {
  const size = (start) => sum(tensors.filter(({ name }) => name.startsWith(start) && !name.slice(start.length - 1).includes(".experts."))
    .map((tensor) => part(plans, tensor, tp, ep, 1)));
  const units = [...facts.layers.map(({ index }) => size(`model.layers.${index}.`)), size("model.embed_tokens.")];
  // A tied head is the embedding's table under another name.
  const table = facts.model.tie_word_embeddings
    ? sum(tensors.filter(({ name }) => name === "model.embed_tokens.weight").map((one) => part(plans, { ...one, name: "lm_head.weight" }, tp, ep, 1))) : 0;
  return Math.max(...units) + size("model.norm.") + size("lm_head.") + table;
}
