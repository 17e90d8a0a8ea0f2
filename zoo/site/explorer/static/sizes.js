// What a model costs, from the facts of its config: what description_zoo/measure.py counts on models without weights.

import { count, endTensors, furtherTensors, headTensors, layerTensors, modelTensors, numel, sharedBlockTensors, compression } from "./tensors.js";

const sum = (values) => values.reduce((one, other) => one + other, 0);
export const WIDTHS = { float32: 4, bfloat16: 2, float16: 2, float8: 1 };
// A state is kept in float32 whatever the model's dtype; so many writes of single tokens wait beside it.
const STATE_WIDTH = 4, SLOTS = 16;
// Tokens of a chunk in which a recurrence reads a prompt.
const CHUNK = 32;

// -- parameters ----------------------------------------------------------------------------------------------------

const ofExpert = (tensors) => sum(tensors.filter((one) => one.kind === "experts").map((one) => Math.floor(numel(one) / one.shape[0])));

export function parameters(facts) {
  const { model, layers, further } = facts;
  const ofLayers = layers.map((layer) => {
    const tensors = layerTensors(layer), expert = ofExpert(tensors);
    const idle = expert * ((layer.num_experts ?? 0) - Math.min(layer.num_experts_per_tok ?? 0, layer.num_experts ?? 0));
    const zero = expert * Math.min(layer.zero_expert_num ?? 0, layer.num_experts_per_tok ?? 0);
    return { total: count(tensors), inactive: idle, spared: zero };
  });
  const total = count(modelTensors(facts)), beyond = further ? count(furtherTensors(further)) : 0;
  const active = total - beyond - sum(ofLayers.map((layer) => layer.inactive));
  const tables = [...endTensors(model).filter((one) => /^embed_tokens|embed_tokens_per_layer/.test(one.name)), ...headTensors(model).filter((one) => one.name === "lm_head.weight")];
  return {
    total, active, further: beyond, leastActive: active - sum(ofLayers.map((layer) => layer.spared)),
    embedding: count(tables), layers: ofLayers.map(({ total: all, inactive }) => ({ total: all, inactive })),
  };
}

// -- caches --------------------------------------------------------------------------------------------------------

// Channels that attention keeps of a token.
function keptChannels(layer) {
  if (!layer.softmax || layer.shares) return 0;
  if (layer.mechanism === "latent") return layer.kv_lora_rank + layer.qk_rope_head_dim + (layer.indexes ? layer.index_head_dim : 0);
  if (layer.mechanism === "grouped_tied") return layer.num_key_value_heads * layer.value_width + layer.tied_rope;
  if (layer.mechanism === "tensor_product") {
    const { key_rank: keys, value_rank: values } = layer.attention_factors, heads = layer.num_key_value_heads;
    return keys * (heads + layer.head_dim) + values * (heads + layer.value_width);
  }
  // Beside keys and values: a gate of each query head, or the direction in which a token reflects.
  const beside = { forgetting: layer.num_attention_heads, path: layer.num_key_value_heads * layer.head_dim }[layer.mechanism] ?? 0;
  const ofIndexer = layer.indexes ? layer.index_head_dim : 0;
  // Keys that are the values, rotated as they are, are kept once.
  const values = layer.attention_k_eq_v && layer.position_config.rope_values ? 0 : layer.value_width;
  return layer.num_key_value_heads * (layer.head_dim + values) + beside + ofIndexer;
}

const MATRIX = ["linear_attention", "lightning_attention", "gated_linear_attention", "delta_net", "gated_delta_net",
  "kimi_delta_attention", "delta_product", "gated_delta_product"];
const DELTA = ["delta_net", "gated_delta_net", "kimi_delta_attention"];
const PRODUCTS = ["delta_product", "gated_delta_product"];

// Numbers of a recurrence's state in float32, and channels of its convolution's window.
function stateOf({ recurrence, settings, hidden_size: hidden }) {
  if (recurrence === "short_conv") return { numbers: 0, channels: hidden };
  const { num_value_heads: heads, value_head_dim: width, num_key_heads: keyHeads, key_head_dim: states } = settings;
  if (recurrence === "rg_lru") return { numbers: heads * width, channels: heads * width };
  if (recurrence === "mamba") return { numbers: heads * width * states, channels: heads * width };
  if (recurrence === "mamba2") return { numbers: heads * width * states, channels: heads * width + 2 * keyHeads * states };
  const writes = PRODUCTS.includes(recurrence) ? settings.num_householder : 1;
  return { numbers: heads * width * states, channels: keyHeads * states + writes * (keyHeads * states + heads * width) };
}

// {perToken, state, workspace, window} of a layer, in bytes, and the tokens that its window keeps, null for all.
export function layerCache(layer, dtype) {
  const width = WIDTHS[dtype], window = windowOf(layer);
  const cache = { perToken: keptChannels(layer) * width, state: 0, workspace: 0, window, entry: 0, rate: null };
  const entries = compression(layer);
  if (entries !== null) {
    const { rate, parts, overlap } = entries;
    const ofToken = sum(parts.map(([heads, channels]) => 2 * heads * channels * (1 + overlap) + layer.turning));
    cache.state = (rate * (1 + overlap) - 1) * ofToken * width;
    Object.assign(cache, { rate, entry: sum(parts.map(([heads, channels]) => heads * channels)) * width });
  }
  if (layer.recurrence === null) return cache;
  const { numbers, channels } = stateOf(layer), { settings } = layer;
  cache.state = numbers * STATE_WIDTH + channels * (settings.conv_kernel_dim ?? 0) * width;
  if (layer.recurrence === "mamba2" || (MATRIX.includes(layer.recurrence) && !PRODUCTS.includes(layer.recurrence))) {
    const reads = DELTA.includes(layer.recurrence) ? 2 : 1;
    const { num_value_heads: heads, key_head_dim: keys, value_head_dim: values } = settings;
    cache.workspace = STATE_WIDTH * heads * ((SLOTS + 2 + reads) * keys + (SLOTS + reads + 1) * values + reads * SLOTS);
  }
  return cache;
}

export function windowOf(layer) {
  if (layer.pattern !== "none") return null;
  const field = { sliding_attention: "sliding_window", hybrid_sliding: "sliding_window", chunked_attention: "attention_chunk_size",
    compressed_sparse_attention: "sliding_window", heavily_compressed_attention: "sliding_window" }[layer.layer_type];
  return field ? layer[field] : null;
}

// Bytes of a layer's cache after `length` tokens: a window keeps what the next token sees beside itself.
const entriesBytes = (cache, length) => cache.rate === null ? 0 : cache.entry * Math.floor(length / cache.rate);
export const cachedBytes = (cache, length) => cache.state + entriesBytes(cache, length)
  + cache.perToken * Math.max(cache.window === null ? length : Math.min(length, cache.window - 1), 0);

// Totals of one sequence after `context` tokens; `caches` as layerCache gives them.
export function cacheTotals(caches, context) {
  const state = sum(caches.map((one) => one.state));
  const growing = sum(caches.map((one) => one.window === null ? cachedBytes(one, context) - one.state : entriesBytes(one, context)));
  const held = sum(caches.map((one) => cachedBytes(one, context)));
  return {
    perToken: sum(caches.map((one) => one.rate !== null ? Math.floor(one.entry / one.rate) : one.window === null ? one.perToken : 0)),
    windows: sum(caches.filter((one) => one.window !== null).map((one) => cachedBytes(one, one.window) - one.state - entriesBytes(one, one.window))),
    state, workspace: sum(caches.map((one) => one.workspace)), growing, held, windowed: held - growing - state,
  };
}

// -- operations ----------------------------------------------------------------------------------------------------

const isMatrix = (one) => one.shape.length === 2 && one.kind === null;
const products = (tensors) => 2 * count(tensors.filter(isMatrix));

// Operations for each key that attention reads: {decode, prompt}, and the most keys, null for all.
function perKey(layer) {
  if (!layer.softmax) return { decode: 0, prompt: 0, limit: null };
  const heads = layer.num_attention_heads;
  const limit = layer.layer_type === "indexed_attention" ? layer.index_topk
    : windowOf({ ...layer, pattern: "none" });
  if (layer.mechanism === "latent") {
    return {
      decode: 2 * heads * (2 * layer.kv_lora_rank + layer.qk_rope_head_dim),
      prompt: 2 * heads * (layer.qk_nope_head_dim + layer.qk_rope_head_dim + layer.v_head_dim), limit,
    };
  }
  const cost = 2 * heads * (layer.head_dim + (layer.mechanism === "differential" ? 2 : 1) * layer.value_width);
  return { decode: cost + composed(layer), prompt: cost, limit };
}

// Products of factors that give one token's keys and values.
const composed = ({ mechanism, attention_factors: ranks, ...layer }) => mechanism === "tensor_product"
  ? 2 * layer.num_key_value_heads * (ranks.key_rank * layer.head_dim + ranks.value_rank * layer.value_width) : 0;
const queryProducts = ({ mechanism, attention_factors: ranks, ...layer }) => mechanism === "tensor_product"
  ? 2 * ranks.query_rank * layer.num_attention_heads * layer.head_dim : 0;

// Operations of a recurrence for a token, beside the products with its matrices: {decode, prompt}. A prompt is read in
// chunks, in which the tokens meet each other and then the state.
function ofState({ recurrence, settings }) {
  if (recurrence === "short_conv") return { decode: 0, prompt: 0 };
  const { num_value_heads: heads, value_head_dim: values, num_key_heads: keyHeads, key_head_dim: keys } = settings;
  // Two block-diagonal gates.
  if (recurrence === "rg_lru") return { decode: 4 * heads * values ** 2, prompt: 4 * heads * values ** 2 };
  const state = heads * keys * values;
  if (recurrence === "mamba") {
    const inner = heads * values, maps = keyHeads === 1 ? 0 : 2 * inner * (2 * settings.time_step_rank + 2 * keys);
    return { decode: 2 * state + maps, prompt: 2 * state + maps };
  }
  const writes = PRODUCTS.includes(recurrence) ? settings.num_householder : 1;
  const reads = recurrence !== "mamba2" && !["linear_attention", "lightning_attention", "gated_linear_attention"].includes(recurrence) ? 2 : 1;
  const channel = settings.decay !== null && settings.decay_granularity === "channel" && settings.decay !== "constant" && settings.decay !== undefined;
  // Scores between tokens of a chunk: with a decay for each channel block by block, for every head of its own.
  const scores = channel ? 2 * reads * heads * keys * (CHUNK - 1) / 2 : 2 * reads * keyHeads * keys * CHUNK;
  const inside = reads === 2 ? 2 * heads * CHUNK ** 2 + 4 * heads * CHUNK * values : 2 * heads * CHUNK * values;
  const prompt = scores + inside + 2 * reads * state;
  return { decode: 2 * reads * state * writes, prompt: prompt * writes };
}

// What a token costs in a layer, as LayerFlops of description_zoo/flops.py: {fixed, perKey, limit, indexer}.
export function layerFlops(layer, facts) {
  const tensors = layerTensors(layer);
  const indexer = tensors.filter((one) => one.name.startsWith("self_attn.indexer."));
  const key = indexer.filter((one) => /^self_attn\.indexer\.(wk|k_proj|compressor)\./.test(one.name));
  const weighed = indexer.some((one) => one.name === "self_attn.indexer.weights_proj.weight");
  const routed = tensors.filter((one) => one.kind === "experts" && one.shape.length === 3).map((one) => 2 * numel(one) / one.shape[0]);
  // A mixer's own matrices that no product reads whole: decay rates of a selective scan.
  const unread = tensors.filter((one) => isMatrix(one) && /^linear_attn\.(A_log|.*_gate\.bias|dt_proj\.bias)$/.test(one.name) && !/weight$/.test(one.name));
  let matrices = products(tensors) - products(indexer) - products(unread) + sum(routed) * (layer.num_experts_per_tok ?? 0);
  if (layer.turn >= 0) {
    const owner = facts.model.shared_block_layers[layer.turn % facts.model.num_mem_blocks];
    matrices += products(sharedBlockTensors(facts.layers[owner]));
  }
  const state = layer.recurrence === null ? { decode: 0, prompt: 0 } : ofState(layer), each = perKey(layer);
  return {
    decode: matrices + state.decode + queryProducts(layer),
    prompt: matrices + state.prompt + queryProducts(layer) + composed(layer), perKey: each, limit: each.limit,
    rate: compression(layer)?.rate ?? null, entries: indexer.length ? layer.index_topk : null,
    indexer: indexer.length ? { key: products(key), matrices: products(indexer) - products(key), perKey: 2 * layer.index_n_heads * (layer.index_head_dim + weighed) } : null,
  };
}

const seen = (context, limit) => limit === null ? context : Math.min(context, limit);
const entriesOf = (part, context) => part.rate === null ? 0 : Math.floor(context / part.rate);
function indexerCost(part, context) {
  if (part.indexer === null) return 0;
  const [scored, most] = part.rate === null ? [context, part.limit] : [entriesOf(part, context), part.entries];
  return part.indexer.key + (scored > most ? part.indexer.matrices + part.indexer.perKey * scored : 0);
}
const partCost = (part, way, context) => part[way] + indexerCost(part, context)
  + part.perKey[way] * (seen(context, part.limit) + seen(entriesOf(part, context), part.entries));

// Operations of the head, and of what stands between the table and the first layer.
const endFlops = (model) => products(endTensors(model)) + 2 * model.vocab_size * model.output_width;

// {decode, prompt, train, checkpointed}: operations of a token at a context; `parts`: layerFlops of every layer.
export function flops(facts, context, parts = facts.layers.map((layer) => layerFlops(layer, facts))) {
  const ends = endFlops(facts.model);
  const layers = sum(parts.map((part) => partCost(part, "prompt", context)));
  const own = facts.model.indexer_loss_coef ? 0 : 2 * sum(parts.map((part) => indexerCost(part, context)));
  const train = 3 * (ends + layers) - own;
  return { decode: ends + sum(parts.map((part) => partCost(part, "decode", context))), prompt: ends + layers, train, checkpointed: train + layers };
}

// -- all of it -----------------------------------------------------------------------------------------------------

export const dtypeOf = (model) => model.dtype in WIDTHS ? model.dtype : "bfloat16";

// The report of `measure`, under its names, with `flops` at some contexts.
export function sizes(facts, { dtype = dtypeOf(facts.model), contexts = [] } = {}) {
  const { model, layers } = facts, counted = parameters(facts);
  const caches = layers.map((layer) => layerCache(layer, dtype)), length = model.max_position_embeddings;
  const totals = cacheTotals(caches, length);
  const parts = layers.map((layer) => layerFlops(layer, facts));
  return {
    dtype,
    parameters: counted.total, active_parameters: counted.active, least_active_parameters: counted.leastActive,
    embedding_parameters: counted.embedding, prediction_parameters: counted.further,
    cache_bytes_per_token: totals.perToken, window_bytes: totals.windows, state_bytes: totals.state,
    workspace_bytes: totals.workspace, cache_bytes_at_full_length: totals.held,
    layers: layers.map((layer, index) => ({
      parameters: counted.layers[index].total, inactive_parameters: counted.layers[index].inactive,
      cache_bytes_per_token: caches[index].perToken, state_bytes: caches[index].state,
      workspace_bytes: caches[index].workspace, window: caches[index].window,
    })),
    flops: Object.fromEntries(contexts.map((context) => [context, flops(facts, context, parts)])),
  };
}
