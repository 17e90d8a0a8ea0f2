// The boxes of a drawing: what each is, which weights it has, which flags it reads.

import { fields, guides, parts } from "./data.js";
import { count, endTensors, furtherTensors, headTensors, layerTensors, numel, sharedBlockTensors } from "./tensors.js";

// The field that chooses a part of a kind: its guide speaks for parts that no guide names.
const CHOSEN_BY = {
  mixer: ["attention_type", "linear_attention_type"], block: ["block_type"], norm: ["norm_type"], router: ["scoring_func"],
  gate: ["attn_output_gate"], position: ["position_embedding_type"], mlp: ["gated_mlp"],
};
const NAMED = {
  embedding: ["vocab_size", "embedding_size", "embedding_multiplier", "embedding_norm", "tie_word_embeddings"],
  head: ["tie_word_embeddings", "lm_head_bias", "logits_scaling", "final_logit_softcapping"],
  sinks: ["attention_sinks"], indexer: ["index_topk", "index_n_heads", "index_head_dim", "indexer_types"],
  qkNorm: ["qk_norm", "qk_norm_config.scope", "qk_norm_config.weight", "qk_norm_config.position"],
  experts: ["num_experts", "num_experts_per_tok", "moe_intermediate_size", "expert_bias", "moe_latent_size", "zero_expert_num"],
  shared: ["n_shared_experts", "shared_expert_intermediate_size", "shared_expert_gate"],
  window: ["layer_types", "sliding_window", "attention_chunk_size", "sparse_attention_pattern"],
  further: ["num_mtp_layers", "mtp.layer_type", "mtp.mlp_layer_type", "mtp.projection"],
};

// {name, file, text, guides} of a part and the flags that it reads, each once.
export function partOf(box) {
  const part = box.part === undefined ? null : parts[box.part[0]][box.part[1]];
  const slugs = part?.guides.length ? part.guides
    : Object.keys(guides).filter((slug) => (CHOSEN_BY[box.part?.[0]] ?? []).some((name) => guides[slug].flags.includes(name)));
  const own = NAMED[box.flags] ?? NAMED[box.id] ?? slugs.flatMap((slug) => guides[slug].flags);
  return { part, slugs, flags: [...new Set(own)].filter((name) => name in fields) };
}

// What a field says in a layer.
export function valueIn(layer, name) {
  const [group, key] = name.split(".");
  const value = key === undefined ? layer[group] : layer[group]?.[key];
  return Array.isArray(value) && value.length === layer.num_hidden_layers && fields[name]?.by_layer.startsWith("a list") ? value[layer.index ?? 0] : value;
}

const pick = (tensors, pattern, without = null) => tensors.filter(({ name }) => pattern.test(name) && !without?.test(name));

// The boxes of one layer by place: {attn_norm, mixer: [...], mlp: [...], ...}; each {id, kind, label, says, part, tensors}.
export function boxesOf(facts, layer, words) {
  const tensors = layerTensors(layer), found = {};
  const norm = (id) => ({ id, kind: "norm", label: "norm", part: ["norm", layer.norm_type], says: layer.norm_type, tensors: pick(tensors, new RegExp(`^${id}\\.`)) });
  for (const id of ["attn_norm", "attn_output_norm", "mlp_norm", "mlp_output_norm", "mlp_branch_norm", "moe_norm", "moe_output_norm"]) found[id] = norm(id);
  found.mixer = layer.block === "mlp_only" ? [] : mixerBoxes(layer, words, tensors);
  found.mlp = ["mixer_only", "shared_block"].includes(layer.block) ? [] : mlpBoxes(layer, words, tensors);
  found.block = { id: "block", kind: "badge", label: words.residual, part: ["block", layer.block], tensors: pick(tensors, /^(attn_hc|mlp_hc|linear)\./) };
  found.beside = [];
  if (layer.hidden_size_per_layer_input) {
    found.beside.push({ id: "per_layer_input", kind: "mlp", label: `a row of ${layer.hidden_size_per_layer_input} channels of its own`, part: ["other", "per_layer_input"], tensors: pick(tensors, /^per_layer_input\./) });
  }
  if (layer.block === "shared_block") {
    const owner = facts.model.shared_block_layers[layer.turn % facts.model.num_mem_blocks];
    found.shared = {
      id: "shared_block", kind: "mixer", label: `${words.mixer.split(", ")[0]}, and an MLP`, widths: widthsOf(words, false), part: ["other", "shared_block"],
      says: "its weights count once for all layers that use it", tensors: [...sharedBlockTensors(facts.layers[owner]), ...pick(tensors, /^adapters\./)],
    };
  }
  return found;
}

// Of a layer with attention beside a recurrence, the widths of either.
function widthsOf({ widths }, ofState) {
  const own = Object.entries(widths).filter(([name]) => name.endsWith(" of the state") === ofState);
  return Object.fromEntries(own.map(([name, width]) => [name.replace(" of the state", ""), width]));
}

function mixerBoxes(layer, words, tensors) {
  const boxes = [];
  const badges = (list) => list.filter(Boolean).map((box) => ({ kind: "badge", tensors: [], ...box }));
  if (layer.attention !== null) {
    const beside = /^self_attn\.(indexer|output_gate|sinks|[qk]_norm)/;
    const gate = layer.attn_output_gate;
    boxes.push({
      id: "self_attn", kind: "mixer", label: layer.recurrence === null ? words.mixer : words.mixer.split(" + ")[0], part: ["mixer", layer.attention],
      widths: widthsOf(words, false), tensors: pick(tensors, /^self_attn\./, beside),
      badges: badges([
        { id: "position", label: words.positions, part: layer.position_embedding_type in parts.position ? ["position", layer.position_embedding_type] : undefined },
        { id: "window", label: words.context.replace(/^full$/, "sees all"), flags: "window" },
        layer.normed ? { id: "qkNorm", label: words.features.find((one) => one.startsWith("QK")) ?? "QK norm", part: ["norm", layer.qk_norm], flags: "qkNorm", tensors: pick(tensors, /^self_attn\.[qk]_norm\./) } : null,
        gate ? { id: "gate", label: words.features.find((one) => /gate/.test(one)) ?? "gate", part: ["gate", gate], tensors: pick(tensors, /^self_attn\.output_gate\./) } : null,
        layer.sinks ? { id: "sinks", label: "sinks", tensors: pick(tensors, /^self_attn\.sinks/) } : null,
        layer.layer_type === "indexed_attention" ? { id: "indexer", label: layer.indexes ? "indexer" : "indexer of a layer before", part: ["other", "indexer"], tensors: pick(tensors, /^self_attn\.indexer\./) } : null,
        ...words.features.filter((one) => !/^QK|gate|^sinks$/.test(one)).map((one, index) => ({ id: `feature${index}`, label: one, part: ["mixer", layer.attention] })),
      ]),
    });
  }
  if (layer.recurrence !== null) {
    boxes.push({
      id: "linear_attn", kind: "mixer", label: words.mixer.replace(/^.* \+ |^shared block [^,]*, /, ""),
      part: ["mixer", layer.recurrence], widths: layer.softmax ? widthsOf(words, true) : words.widths, tensors: pick(tensors, /^linear_attn\./),
      badges: badges([{ id: "window", label: "keeps a state", flags: "window" }]),
    });
  }
  return boxes;
}

function mlpBoxes(layer, words, tensors) {
  const dense = layer.gated_mlp ? "gated" : "plain", beside = tensors.some(({ name }) => name.startsWith("moe."));
  if (layer.mlp !== "sparse") return [{ id: "mlp", kind: "mlp", label: words.mlp, part: ["mlp", dense], tensors: pick(tensors, /^mlp\./), badges: [] }];
  const root = beside ? "moe" : "mlp";
  const boxes = [{
    id: "sparse", kind: "mlp", label: words.mlp, part: ["mlp", "sparse"], tensors: pick(tensors, new RegExp(`^${root}\\.(fc[12]_latent_proj)`)), experts: words.experts,
    badges: [
      { id: "router", kind: "badge", label: `router (${layer.scoring_func})`, part: ["router", layer.scoring_func], tensors: pick(tensors, new RegExp(`^${root}\\.gate\\.`)) },
      { id: "experts", kind: "badge", label: `${layer.num_experts} experts, ${layer.num_experts_per_tok} for a token`, part: ["mlp", "sparse"], flags: "experts", tensors: pick(tensors, new RegExp(`^${root}\\.experts\\.`)) },
      ...(layer.n_shared_experts ? [{ id: "shared", kind: "badge", label: `${layer.n_shared_experts} shared`, part: ["mlp", dense], flags: "shared", tensors: pick(tensors, new RegExp(`^${root}\\.shared_expert`)) }] : []),
    ],
  }];
  return beside ? [{ id: "mlp", kind: "mlp", label: `dense ${layer.intermediate_size}`, part: ["mlp", dense], tensors: pick(tensors, /^mlp\./), badges: [] }, ...boxes] : boxes;
}

// The boxes before and after the layers.
export function endBoxes({ model, further }) {
  const tensors = endTensors(model);
  return {
    embedding: { id: "embedding", kind: "end", label: `tokens → embedding ${model.vocab_size.toLocaleString("en-US")} × ${model.output_width.toLocaleString("en-US")}`, part: ["end", "embedding"], tensors: tensors.filter(({ name }) => !/^(norm|project_out|hc_head)\b/.test(name)) },
    norm: model.final_norm ? { id: "final_norm", kind: "norm", label: model.norm_type, part: ["norm", model.norm_type], tensors: pick(tensors, /^norm\./) } : null,
    head: { id: "head", kind: "end", label: `head → logits${model.tie_word_embeddings ? ", the embedding's table again" : ""}`, part: ["end", "head"], tensors: [...pick(tensors, /^project_out/), ...headTensors(model)] },
    further: further ? { id: "further", kind: "end", label: `${further.count} × a layer that predicts further tokens`, part: ["other", "further"], tensors: furtherTensors(further) } : null,
  };
}
export { count, numel };
