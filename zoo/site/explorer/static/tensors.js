// The weights of a model by name and shape, from the facts of its config: what the classes of modeling_zoo make.
//
// A tensor is {name, shape} and at most one `kind`: "norm", "table" (rows are looked up), "experts" (a token goes to
// some of them). A product with any other matrix costs two operations for each of its numbers. `wide`: float32 always.

const tensor = (name, shape, kind = null) => ({ name, shape, kind });
export const numel = ({ shape }) => shape.reduce((count, size) => count * size, 1);
export const count = (tensors) => tensors.reduce((sum, one) => sum + numel(one), 0);

const wide = (tensors) => tensors.map((one) => ({ ...one, wide: true }));
const within = (prefix, tensors) => tensors.map((one) => ({ ...one, name: `${prefix}.${one.name}` }));
const linear = (name, inputs, outputs, bias = false) => [
  tensor(`${name}.weight`, [outputs, inputs]), ...(bias ? [tensor(`${name}.bias`, [outputs])] : []),
];
const throughRank = (name, inputs, outputs, rank) => rank === null ? linear(name, inputs, outputs)
  : [...linear(`${name}.0`, inputs, rank), ...linear(`${name}.1`, rank, outputs)];
const norm = (name, layer, width) => [
  ...(layer.norm_elementwise_affine ? [tensor(`${name}.weight`, [width], "norm")] : []),
  ...(layer.norm_elementwise_affine && layer.norm_bias ? [tensor(`${name}.bias`, [width], "norm")] : []),
];

// -- attention -----------------------------------------------------------------------------------------------------

function qkNorm(name, layer, heads, width) {
  if (!layer.normed) return [];
  const { scope, weight, bias } = layer.qk_norm_config;
  if (weight === "none" || (weight === "keys" && name === "q_norm")) return [];
  const size = scope === "full" ? heads * width : width;
  const shape = weight === "per_head" ? [heads, size] : [size];
  return [tensor(`${name}.weight`, shape, "norm"), ...(bias ? [tensor(`${name}.bias`, shape, "norm")] : [])];
}

// A gate from the query projection makes that wider.
const gateWidth = (layer) => layer.attn_output_gate === "query" ? layer.value_width : 0;

// What every softmax attention has: sinks, a gate, a norm in front of its last projection.
function aroundHeads(layer) {
  const heads = layer.num_attention_heads, gate = layer.attn_output_gate;
  const perHead = gate?.startsWith("headwise") ? 1 : layer.value_width;
  return [
    ...(layer.sinks ? [tensor("sinks", [heads])] : []),
    ...(gate !== null && gate !== "query" ? linear("output_gate.g_proj", layer.hidden_size, heads * perHead) : []),
    ...(layer.block === "sub_norm" ? norm("sub_norm", layer, heads * layer.value_width) : []),
  ];
}

function groupedQuery(layer, inputs = layer.hidden_size) {
  const { num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim: width, attention_bias: bias } = layer;
  const keys = layer.shares ? [] : [
    ...linear("k_proj", inputs, kvHeads * width, bias),
    ...(layer.attention_k_eq_v ? [] : linear("v_proj", inputs, kvHeads * layer.value_width, bias)),
    ...qkNorm("k_norm", layer, kvHeads, width),
  ];
  return [
    ...aroundHeads(layer),
    ...queries(layer, inputs, heads * (width + gateWidth(layer)), bias),
    ...keys,
    ...outputs(layer, heads * layer.value_width),
    ...qkNorm("q_norm", layer, heads, width),
  ];
}

// One projection to the queries, or two through a rank with a norm between them.
function queries(layer, inputs, width, bias) {
  const rank = layer.mla_config?.query_rank ?? null;
  if (rank === null) return linear("q_proj", inputs, width, bias);
  return [...linear("q_a_proj", inputs, rank, bias), tensor("q_a_layernorm.weight", [rank], "norm"), ...linear("q_b_proj", rank, width)];
}

// One output projection, or two through a rank of each group of heads.
function outputs(layer, width) {
  const { output_rank: rank = null, output_groups: groups = null } = layer.mla_config ?? {};
  const { hidden_size: hidden, attention_out_bias: bias } = layer;
  if (rank === null) return linear("o_proj", width, hidden, bias);
  return [tensor("o_a_proj.weight", [groups * rank, width / groups]), ...linear("o_b_proj", groups * rank, hidden, bias)];
}

// What makes one entry of the tokens of a window: {rate, parts: [heads, width], overlap}, null where nothing does.
export function compression(layer) {
  const sparse = layer.attention === "compressed_sparse";
  if (!sparse && layer.attention !== "heavily_compressed") return null;
  const { compressed_sparse_rate, heavily_compressed_rate } = layer.mla_config;
  const parts = [[layer.num_key_value_heads, layer.head_dim], ...(sparse ? [[1, layer.index_head_dim]] : [])];
  return { rate: sparse ? compressed_sparse_rate : heavily_compressed_rate, parts, overlap: sparse ? 1 : 0 };
}

function compressor(layer, [heads, width]) {
  const { rate, overlap } = compression(layer), channels = heads * width * (1 + overlap);
  return within("compressor", [
    tensor("position_bias", [rate, channels], "norm"),
    ...linear("kv_proj", layer.hidden_size, channels), ...linear("gate_proj", layer.hidden_size, channels),
    tensor("kv_norm.weight", [width], "norm"),
  ]);
}

function compressed(layer) {
  const { parts } = compression(layer), { index_n_heads: heads, index_head_dim: width, hidden_size: hidden } = layer;
  const indexer = parts.length === 1 ? [] : within("indexer", [
    ...compressor(layer, parts[1]), ...linear("wq_b", layer.mla_config.query_rank ?? hidden, heads * width),
    ...linear("weights_proj", hidden, heads),
  ]);
  return [...groupedQuery({ ...layer, mechanism: layer.attention }), ...compressor(layer, parts[0]), ...indexer];
}

function latent(layer) {
  const { num_attention_heads: heads, num_key_value_heads: kvHeads, hidden_size: hidden, mla_config: how } = layer;
  const rank = layer.kv_lora_rank, nope = layer.qk_nope_head_dim, rope = layer.qk_rope_head_dim;
  const width = heads * (nope + rope + gateWidth(layer));
  const latentNorm = (name, size) => how.norm ? [tensor(`${name}.weight`, [size], "norm")] : [];
  const queries = layer.q_lora_rank === null ? linear("q_proj", hidden, width, how.query_bias) : [
    ...linear("q_a_proj", hidden, layer.q_lora_rank, layer.attention_bias),
    ...latentNorm("q_a_layernorm", layer.q_lora_rank),
    ...linear("q_b_proj", layer.q_lora_rank * (how.raw_query_latent ? 2 : 1), width, how.query_bias),
  ];
  return [
    ...aroundHeads(layer),
    ...queries,
    ...linear("kv_a_proj_with_mqa", hidden, rank + rope, layer.attention_bias),
    ...latentNorm("kv_a_layernorm", rank),
    ...(how.rope_key_norm ? [tensor("k_rope_layernorm.weight", [rope], "norm")] : []),
    ...linear("kv_b_proj", rank, kvHeads * (nope + layer.v_head_dim)),
    ...outputs(layer, heads * layer.v_head_dim),
    ...qkNorm("q_norm", layer, heads * how.rope_heads, rope / how.rope_heads),
    ...qkNorm("k_norm", layer, how.rope_heads, rope / how.rope_heads),
  ];
}

// What chooses blocks of keys for grouped queries.
function blockIndexer(layer) {
  const { index_head_dim: width, index_n_heads: heads, hidden_size: hidden } = layer;
  return within("indexer", [
    ...linear("q_proj", hidden, heads * width), ...linear("k_proj", hidden, width),
    ...norm("q_norm", layer, width), ...norm("k_norm", layer, width),
  ]);
}

function indexer(layer) {
  const { index_n_heads: heads, index_head_dim: width, hidden_size: hidden } = layer;
  return within("indexer", [
    ...linear("wq_b", layer.q_lora_rank || hidden, heads * width),
    ...linear("wk", hidden, width),
    tensor("k_norm.weight", [width], "norm"), tensor("k_norm.bias", [width], "norm"),
    ...linear("weights_proj", hidden, heads),
  ]);
}

function factoredQuery(layer) {
  const { query_rank: rank, query_norm: normed } = layer.attention_factors, { hidden_size: hidden, attention_bias: bias } = layer;
  const others = groupedQuery(layer).filter((one) => !one.name.startsWith("q_proj."));
  return [
    ...others,
    ...linear("q_a_proj", hidden, rank, bias),
    ...(normed ? [tensor("q_a_layernorm.weight", [rank], "norm")] : []),
    ...linear("q_b_proj", rank, layer.num_attention_heads * (layer.head_dim + gateWidth(layer)), bias),
  ];
}

function tensorProduct(layer) {
  const { hidden_size: hidden, attention_bias: bias, num_attention_heads: heads, num_key_value_heads: kvHeads } = layer;
  const ranks = layer.attention_factors;
  const factors = (name, rank, count, width) => [
    ...linear(`${name}_a_proj`, hidden, rank * count, bias), ...linear(`${name}_b_proj`, hidden, rank * width, bias),
  ];
  return [
    ...aroundHeads(layer),
    ...factors("q", ranks.query_rank, heads, layer.head_dim),
    ...factors("k", ranks.key_rank, kvHeads, layer.head_dim),
    ...factors("v", ranks.value_rank, kvHeads, layer.value_width),
    ...outputs(layer, heads * layer.value_width),
  ];
}

function groupedTied(layer) {
  const { hidden_size: hidden, attention_bias: bias, num_attention_heads: heads } = layer;
  return [
    ...aroundHeads(layer),
    ...queries(layer, hidden, heads * (layer.head_dim + gateWidth(layer)), bias),
    ...(layer.tied_rope ? linear("k_rope_proj", hidden, layer.tied_rope, bias) : []),
    ...linear("kv_proj", hidden, layer.num_key_value_heads * layer.value_width, bias),
    ...outputs(layer, heads * layer.value_width),
  ];
}

function transformerXL(layer) {
  const { num_attention_heads: heads, head_dim: width } = layer;
  return [
    ...groupedQuery(layer),
    ...linear("r_proj", layer.hidden_size, heads * width),
    tensor("content_bias", [heads, width]), tensor("distance_bias", [heads, width]),
  ];
}

const ATTENTIONS = {
  grouped_query: groupedQuery,
  shared_key_value: groupedQuery,
  differential: (layer) => [...groupedQuery(layer),
    ...["lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"].map((name) => tensor(name, [layer.head_dim]))],
  forgetting: (layer) => [...groupedQuery(layer), ...linear("f_proj", layer.hidden_size, layer.num_attention_heads, true)],
  stick_breaking: groupedQuery,
  path: (layer) => [...groupedQuery(layer), ...linear("w_proj", layer.hidden_size, layer.num_key_value_heads * layer.head_dim),
    ...linear("bt_proj", layer.hidden_size, layer.num_key_value_heads, true)],
  multi_matrix_factorization: factoredQuery,
  tensor_product: tensorProduct,
  grouped_tied: groupedTied,
  value_residual: (layer) => [...groupedQuery(layer), ...(layer.mixes && layer.value_residual === null ? [tensor("value_weights", [2])] : [])],
  latent,
  heavily_compressed: compressed,
  compressed_sparse: compressed,
  block_indexed: (layer) => [...groupedQuery(layer), ...(layer.indexes ? blockIndexer(layer) : [])],
  indexed: (layer) => [...latent(layer), ...(layer.indexes ? indexer(layer) : [])],
  transformer_xl: transformerXL,
};

// -- recurrences ---------------------------------------------------------------------------------------------------

const inFloat32 = (settings, tensors) => settings.float32_parameters ? wide(tensors) : tensors;
const convolution = (settings, channels) => settings.conv_kernel_dim ? inFloat32(settings, [
  tensor("conv1d.weight", [channels, 1, settings.conv_kernel_dim]), ...(settings.conv_bias ? [tensor("conv1d.bias", [channels])] : []),
]) : [];

function outputNorm(settings) {
  const inner = settings.num_value_heads * settings.value_head_dim;
  const size = settings.output_norm === "head" ? settings.value_head_dim : inner;
  return settings.output_norm === "none" ? [] : [tensor("o_norm.weight", [size], "norm")];
}

function matrixState(settings, hidden, { beta = false, writes = 1 } = {}) {
  const keys = settings.num_key_heads * settings.key_head_dim, heads = settings.num_value_heads;
  const values = heads * settings.value_head_dim, decay = settings.decay ?? null;
  const width = heads * (settings.decay_granularity === "channel" ? settings.key_head_dim : 1);
  const decays = decay === null || decay === "constant" ? [] : [
    ...throughRank("a_proj", hidden, width, settings.decay_rank),
    ...inFloat32(settings, [tensor("dt_bias", [width]), ...(decay === "log_sigmoid" ? [] : [tensor("A_log", [heads])])]),
  ];
  return [
    ...linear("q_proj", hidden, keys, settings.bias),
    ...linear("k_proj", hidden, writes * keys, settings.bias),
    ...linear("v_proj", hidden, writes * values, settings.bias),
    ...convolution(settings, keys + writes * (keys + values)),
    ...decays,
    ...(beta ? linear("b_proj", hidden, writes * heads) : []),
    ...(settings.output_gate === "none" ? [] : throughRank("g_proj", hidden, values, settings.gate_rank)),
    ...outputNorm(settings),
    ...linear("o_proj", values, hidden, settings.bias),
  ];
}

function mamba2(settings, hidden) {
  const heads = settings.num_value_heads, inner = heads * settings.value_head_dim;
  const states = settings.num_key_heads * settings.key_head_dim, gate = settings.output_gate === "none" ? 0 : inner;
  return [
    ...linear("in_proj", hidden, gate + inner + 2 * states + heads, settings.bias),
    ...convolution(settings, inner + 2 * states),
    tensor("A_log", [heads]), tensor("D", [heads]), tensor("dt_bias", [heads]),
    ...outputNorm(settings),
    ...linear("o_proj", inner, hidden, settings.bias),
  ];
}

// A map for each group of channels.
const grouped = (name, groups, inputs, outputs, bias = false) => groups === 1 ? linear(name, inputs, outputs, bias)
  : [tensor(`${name}.weight`, [groups, outputs, inputs]), ...(bias ? [tensor(`${name}.bias`, [groups, outputs])] : [])];

function mamba(settings, hidden) {
  const inner = settings.num_value_heads * settings.value_head_dim, groups = settings.num_key_heads;
  const { key_head_dim: states, time_step_rank: rank } = settings, gate = settings.output_gate === "none" ? 0 : inner;
  const stepNorm = (name, size) => settings.step_norm === "rms_norm" ? [tensor(`${name}.weight`, [size], "norm")] : [];
  return [
    ...linear("in_proj", hidden, inner + gate, settings.bias),
    ...convolution(settings, inner),
    ...grouped("x_proj", groups, inner / groups, rank + 2 * states),
    ...grouped("dt_proj", groups, rank, inner / groups, true),
    ...stepNorm("dt_norm", rank), ...stepNorm("b_norm", states), ...stepNorm("c_norm", states),
    tensor("A_log", [inner, states]), tensor("D", [inner]),
    ...outputNorm(settings),
    ...linear("o_proj", inner, hidden, settings.bias),
  ];
}

function gatedUnit(settings, hidden) {
  const { num_value_heads: heads, value_head_dim: width } = settings, inner = heads * width;
  const blocks = (name) => [tensor(`${name}.weight`, [heads, width, width]), tensor(`${name}.bias`, [heads, width])];
  return [
    ...linear("in_proj", hidden, inner, settings.bias),
    ...(settings.output_gate === "none" ? [] : linear("g_proj", hidden, inner, settings.bias)),
    ...convolution(settings, inner),
    ...blocks("input_gate"), ...blocks("recurrence_gate"), tensor("recurrent_param", [inner]),
    ...outputNorm(settings),
    ...linear("o_proj", inner, hidden, settings.bias),
  ];
}

const delta = (settings, hidden) => matrixState(settings, hidden, { beta: true });
const deltaProduct = (settings, hidden) => matrixState(settings, hidden, { beta: true, writes: settings.num_householder });
const RECURRENCES = {
  linear_attention: matrixState, lightning_attention: matrixState, gated_linear_attention: matrixState,
  delta_net: delta, gated_delta_net: delta, kimi_delta_attention: delta,
  delta_product: deltaProduct, gated_delta_product: deltaProduct,
  mamba2, mamba, rg_lru: gatedUnit,
  short_conv: (settings, hidden) => [
    ...linear("in_proj", hidden, 3 * hidden, settings.bias), ...convolution(settings, hidden), ...linear("o_proj", hidden, hidden, settings.bias),
  ],
};

// -- MLPs ----------------------------------------------------------------------------------------------------------

const activation = (layer) => layer.hidden_act === "xielu" ? [tensor("act_fn.alpha_p", [1]), tensor("act_fn.alpha_n", [1])] : [];

function dense(layer, inner = layer.intermediate_size, placed = true) {
  const { hidden_size: hidden, mlp_bias: bias } = layer;
  return [
    ...(layer.gated_mlp ? linear("gate_proj", hidden, inner, bias) : []),
    ...linear("up_proj", hidden, inner, bias),
    ...linear("down_proj", inner, hidden, bias),
    ...activation(layer),
    ...(placed && layer.block === "sub_norm" ? norm("sub_norm", layer, inner) : []),
  ];
}

function router(layer) {
  const outputs = layer.num_experts + (layer.zero_expert_num ?? 0), how = layer.router;
  const matrix = [tensor("gate.weight", [outputs, layer.hidden_size]), ...(how.bias ? [tensor("gate.bias", [outputs])] : [])];
  return [
    ...(layer.precision.router === "float32_weight" ? wide(matrix) : matrix),
    ...(how.input_norm ? [tensor("gate.norm.weight", [layer.hidden_size], "norm")] : []),
    ...(how.per_expert_scale ? [tensor("gate.per_expert_scale", [outputs])] : []),
  ];
}

function experts(layer) {
  const count = layer.num_experts, inner = layer.moe_intermediate_size, width = layer.moe_latent_size || layer.hidden_size;
  const [name, outputs] = layer.gated_mlp ? ["gate_up_proj", 2 * inner] : ["up_proj", inner];
  const bias = (matrix, size) => layer.expert_bias ? [tensor(`experts.${matrix}_bias`, [count, size], "experts")] : [];
  return [
    tensor(`experts.${name}`, [count, outputs, width], "experts"), ...bias(name, outputs),
    tensor("experts.down_proj", [count, width, inner], "experts"), ...bias("down_proj", width),
    ...within("experts", activation(layer).map((one) => layer.swiglu_config["alpha"] === null ? { ...one, kind: "experts" } : null).filter(Boolean)),
  ];
}

function sparse(layer) {
  const { hidden_size: hidden, moe_latent_size: width, mlp_bias: bias } = layer;
  const shared = layer.n_shared_experts ? dense(layer, layer.shared_expert_intermediate_size) : [];
  return [
    ...router(layer),
    ...experts(layer),
    ...(width ? [...linear("fc1_latent_proj", hidden, width, bias), ...linear("fc2_latent_proj", width, hidden, bias)] : []),
    ...(layer.router.latent_norm ? norm("latent_norm", layer, width) : []),
    ...within("shared_experts", shared),
    ...(layer.n_shared_experts && layer.shared_expert_gate ? linear("shared_expert_gate", hidden, 1) : []),
    ...(layer.shared_expert_combination_strategy === "normed_sum" ? norm("output_norm", layer, hidden) : []),
  ];
}

// -- layers --------------------------------------------------------------------------------------------------------

const PRE = ["attn_norm", "mlp_norm"], POST = ["attn_output_norm", "mlp_output_norm"];
const NORMS = {
  output_norm: POST, post_norm: POST, sandwich_norm: [...PRE, ...POST], scaled_sandwich_norm: [...PRE, ...POST],
  altup: [...PRE, ...POST],
  parallel: ["attn_norm"], mixer_only: ["attn_norm"], shared_block: ["attn_norm"], mlp_only: ["mlp_norm"],
};

// Norms with a gate of their own.
const GATED = { gated_norm: PRE, gated_attn_norm: ["attn_norm"] };

function gatedNorm(layer) {
  const { hidden_size: hidden, block_config: { gated_norm_rank: rank } } = layer;
  return [...norm("norm", layer, hidden), ...linear("a_proj", hidden, rank), ...linear("b_proj", rank, hidden)];
}

// What a sub-layer reads over depth.
const depthRead = (name, layer) => within(name, [...norm("norm", layer, layer.hidden_size), tensor("query", [layer.hidden_size])]);

// Streams that layers predict and correct, and the map of low rank beside attention.
function altup(layer) {
  const { hidden_size: hidden, block_config: { altup_num_inputs: streams } } = layer;
  return [
    ...norm("router_norm", layer, hidden), ...linear("modality_router", hidden, streams),
    ...linear("prediction_coefs", streams, streams ** 2), ...linear("correction_coefs", streams, streams),
  ];
}

function laurel(layer) {
  const { hidden_size: hidden, block_config: { laurel_rank: rank } } = layer;
  return [...linear("linear_left", hidden, rank), ...linear("linear_right", rank, hidden), ...norm("post_laurel_norm", layer, hidden)];
}

function altupEnds({ hidden_size: hidden, block_config: { altup_num_inputs: streams } }) {
  return ["altup_projections", "altup_unembed_projections"].flatMap((name) =>
    Array.from({ length: streams - 1 }, (_, index) => linear(`${name}.${index}`, hidden, hidden)).flat());
}

function hyperConnection(layer, parts) {
  const outputs = parts.reduce((sum, part) => sum + part, 0);
  return wide([tensor("fn", [outputs, layer.hc_mult * layer.hidden_size]), tensor("base", [outputs]), tensor("scale", [parts.length])]);
}

function adapters(layer) {
  const { shared_attention_adapter_rank: rank, shared_mlp_adapter_rank: mlpRank, hidden_size: hidden } = layer;
  const one = (name, inputs, through, outputs) => through === null ? [] : throughRank(name, inputs, outputs, through);
  return within("adapters", [
    ...one("q_proj", 2 * hidden, rank, layer.num_attention_heads * layer.head_dim),
    ...one("k_proj", 2 * hidden, rank, layer.num_key_value_heads * layer.head_dim),
    ...one("v_proj", 2 * hidden, rank, layer.num_key_value_heads * layer.value_width),
    ...one("gate_up_proj", hidden, mlpRank, 2 * layer.intermediate_size),
  ]);
}

// What a layer's mixer, or one of its two, is made of; throws for one that this file does not know.
function mixers(layer) {
  const found = [];
  if (layer.attention !== null) {
    if (!(layer.attention in ATTENTIONS)) throw new Error(`attention_type ${layer.attention} is not reckoned here.`);
    found.push(...within("self_attn", ATTENTIONS[layer.attention](layer)));
  }
  if (layer.recurrence !== null) {
    if (!(layer.recurrence in RECURRENCES)) throw new Error(`linear_attention_type ${layer.recurrence} is not reckoned here.`);
    found.push(...within("linear_attn", RECURRENCES[layer.recurrence](layer.settings, layer.hidden_size)));
  }
  return found;
}

export function layerTensors(layer) {
  const { block, hidden_size: hidden, hidden_size_per_layer_input: row } = layer;
  const isSparse = layer.mlp === "sparse", beside = isSparse && (block === "scaled_sandwich_norm" || block === "shortcut");
  const hasMlp = !["mixer_only", "shared_block"].includes(block);
  return [
    ...(NORMS[block] ?? PRE).flatMap((name) => GATED[block]?.includes(name) ? within(name, gatedNorm(layer)) : norm(name, layer, hidden)),
    ...(block === "mlp_only" ? [] : mixers(layer)),
    ...(hasMlp ? within("mlp", isSparse && !beside ? sparse(layer) : dense(layer)) : []),
    ...(beside ? within("moe", sparse(layer)) : []),
    ...(beside && block === "scaled_sandwich_norm" ? ["mlp_branch_norm", "moe_norm", "moe_output_norm"].flatMap((name) => norm(name, layer, hidden)) : []),
    ...(block === "hyper_connection" ? ["attn_hc", "mlp_hc"].flatMap((name) => within(name, hyperConnection(layer, [layer.hc_mult, layer.hc_mult, ...(layer.hc_sinkhorn_iters ? [layer.hc_mult ** 2] : [])]))) : []),
    ...(block === "altup" ? within("altup", altup(layer)) : []),
    ...(block === "attention_residual" ? [...(layer.index > 0 ? depthRead("attn_res", layer) : []), ...depthRead("mlp_res", layer)] : []),
    ...(layer.block_config?.laurel_rank && ["altup", "sandwich_norm"].includes(block) ? within("laurel", laurel(layer)) : []),
    ...(block === "shared_block" ? [...adapters(layer), ...linear("linear", hidden, hidden)] : []),
    ...(row ? within("per_layer_input", [
      ...linear("per_layer_input_gate", hidden, row), ...linear("per_layer_projection", row, hidden), ...norm("post_per_layer_input_norm", layer, hidden),
      ...(block === "altup" && layer.block_config.altup_correct_scale ? [tensor("correct_output_scale", [hidden], "norm")] : []),
    ]) : []),
  ];
}

// A block that layers share: reads the stream and the embeddings side by side.
export function sharedBlockTensors(layer) {
  return [
    ...norm("attn_norm", layer, 2 * layer.hidden_size),
    ...within("self_attn", groupedQuery(layer, 2 * layer.hidden_size)),
    ...norm("mlp_norm", layer, layer.hidden_size),
    ...within("mlp", dense(layer)),
  ];
}

// -- around the layers ---------------------------------------------------------------------------------------------

export function endTensors(model) {
  const { hidden_size: hidden, output_width: outer, position_embedding_type: positions } = model;
  const narrow = model.embedding_size !== null, row = model.hidden_size_per_layer_input;
  return [
    tensor("embed_tokens.weight", [model.vocab_size, outer], "table"),
    ...(narrow ? linear("project_in", outer, hidden) : []),
    ...(positions === "learned" ? [tensor("embed_positions.weight", [model.max_position_embeddings + model.position_config.offset, hidden], "table")] : []),
    ...(positions === "relative" ? [tensor("position_bias.relative_attention_bias.weight", [model.relative_attention_num_buckets, model.num_attention_heads], "table")] : []),
    ...(model.embedding_norm ? norm("embed_norm", model, hidden) : []),
    ...(row ? within("per_layer_embeddings", [
      tensor("embed_tokens_per_layer.weight", [model.vocab_size_per_layer_input, model.num_hidden_layers * row], "table"),
      ...linear("per_layer_model_projection", hidden, model.num_hidden_layers * row), ...norm("per_layer_projection_norm", model, row),
    ]) : []),
    ...(model.hc_mult ? within("hc_head", hyperConnection(model, [model.hc_mult])) : []),
    ...(model.block_config?.attn_res_block_size ? depthRead("output_res", model) : []),
    ...(model.block_config?.altup_num_inputs ? within("hc_head", altupEnds(model)) : []),
    ...(model.final_norm ? norm("norm", model, hidden) : []),
    ...(narrow ? linear("project_out", hidden, outer) : []),
  ];
}

// The output table where it is one of its own.
export const headTensors = (model) => [
  ...(model.tie_word_embeddings ? [] : [tensor("lm_head.weight", [model.vocab_size, model.output_width])]),
  ...(model.lm_head_bias ? [tensor("lm_head.bias", [model.vocab_size])] : []),
];

// The layers that predict further tokens.
export function furtherTensors({ count: depth, ends, layer }) {
  const width = layer.hidden_size;
  const numbered = (name, times, tensors) => Array.from({ length: times }, (_, index) => within(`${name}.${index}`, tensors)).flat();
  return within("mtp", [
    ...numbered("projections", ends, [...norm("embedding_norm", layer, width), ...norm("hidden_norm", layer, width), ...linear("eh_proj", 2 * width, width)]),
    ...numbered("layers", depth, layerTensors(layer)),
    ...Array.from({ length: ends }, (_, index) => norm(`norm.${index}`, layer, width)).flat(),
  ]);
}

// Every weight of a model under the name that it has in a checkpoint.
export function modelTensors({ model, layers, further }) {
  const users = model.shared_block_layers.slice(0, model.num_mem_blocks ?? 0);
  return [
    ...within("model", endTensors(model)),
    ...layers.flatMap((layer) => within(`model.layers.${layer.index}`, layerTensors(layer))),
    ...users.flatMap((index, turn) => within(`model.shared_blocks.${turn}`, sharedBlockTensors(layers[index]))),
    ...(further ? furtherTensors(further) : []),
    ...headTensors(model),
  ];
}
