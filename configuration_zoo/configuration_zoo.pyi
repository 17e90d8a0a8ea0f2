# Written by `python -m description_zoo.stub`; do not edit.
"""ZooConfig: what a model is, one field per concept."""

import os
from typing import Any, Literal, TypedDict

from transformers import PreTrainedConfig

class Initializer(TypedDict, total=False):
    type: Literal["normal", "small", "fan_in", "auto"] | None
    """Standard deviation of a new matrix: initializer_range (normal), sqrt(2 / 5D) (small), or 1 / sqrt(inputs)
    (fan_in). auto: fan_in, and everything around it by the other fields: residual_type 'depth', the residual
    stream at 0.1 or 1, the head at 1 / D. Source: Nguyen & Salazar 2019, arXiv 1910.05895 (small); LeCun et al.
    1998 and PaLM, arXiv 2204.02311 (fan_in); own to zoo (auto)."""
    residual_type: Literal["same", "depth", "layer", "wang", "zero"] | None
    """Standard deviation of the matrices that write to the residual stream: as the others (same), theirs / sqrt(N)
    with N the writers of the whole stack (depth), theirs / sqrt(2 · (layer + 1)) (layer), 2 / (layers · sqrt(D))
    (wang), or zero. Where a norm ends a branch, the same share on its weight. Source: Radford et al. 2019
    (GPT-2), §2.3 (depth); Zhang et al. 2019, arXiv 1908.11365, and OLMo (layer); GPT-NeoX, arXiv 2204.06745
    (wang); Zhang et al. 2019, arXiv 1901.09321 (zero)."""
    embedding_range: float | None
    """Standard deviation of the token table, if it is another; 1 in PaLM. None: as `type` says. Source: PaLM,
    Chowdhery et al. 2022, arXiv 2204.02311, §5."""
    residual_rms: float | None
    """With type 'auto', the root mean square at which the residual stream starts. None: 0.1, or 1 where sinusoids
    join it or it goes through a norm. Needs initializer.type='auto'. Source: own to zoo."""
    by_name: Any | None
    """Standard deviation of matrices and convolutions in layers by the last part of a module's name, such as
    {'o_proj': 0.01}, whatever the other keys say. None: none. Source: own to zoo."""
    cutoff: float | None
    """Values beyond this many standard deviations are drawn again; 3 in OLMo 2. None: a plain normal distribution.
    Source: OLMo 2, arXiv 2501.00656."""

class Precision(TypedDict, total=False):
    norm: Literal["cast_then_scale", "float32", "native", "scale_then_cast"] | None
    """Order of casts in a norm: cast_then_scale or scale_then_cast of an RMS norm, native or float32 of a layer
    norm. None: cast_then_scale, scale_then_cast with norm_unit_offset; native. Needs a norm with a weight
    (norm_elementwise_affine=True). Source: Llama's published code (cast_then_scale); Gemma's (scale_then_cast)."""
    linear_norm: Literal["cast_then_scale", "float32"] | None
    """The norm on a recurrence's output is rounded before its weight, or at the end. None: what the mechanism's
    paper does. Needs a linear_attention_type of ['gated_delta_net', 'kimi_delta_attention', 'delta_net',
    'gated_delta_product', 'delta_product', 'linear_attention', 'gated_linear_attention', 'lightning_attention',
    'mamba2', 'mamba', 'rg_lru']. Source: Mamba-2's published code (cast_then_scale); Falcon-H1's (float32)."""
    linear_decay: Literal["float32", "activation"] | None
    """The decay of a recurrence is kept in float32, or rounded to the activations' dtype. None: float32. Needs a
    linear_attention_type of ['gated_delta_net', 'kimi_delta_attention', 'gated_delta_product',
    'gated_linear_attention']. Source: flash-linear-attention (float32); Ling 3's published code (activation)."""
    linear_float32_parameters: bool | None
    """The convolution, A_log and dt_bias are float32, and computed with, in a model of any dtype. Needs a
    linear_attention_type of ['gated_delta_net', 'kimi_delta_attention', 'delta_net', 'gated_delta_product',
    'delta_product', 'linear_attention', 'gated_linear_attention', 'lightning_attention']. Source: Ling 3's
    published code."""
    rope: Literal["activation", "float32_trig", "float32_qk"] | None
    """Rotation: trigonometry in the activations' dtype, kept in float32, or queries and keys computed with in
    float32 too. None: activation. Needs a layer with softmax attention that rotates (position_embedding_type,
    no_rope_layers). Source: the published code of Llama (activation), OLMo (float32_trig) and Cohere
    (float32_qk)."""
    alibi: Literal["float32", "bfloat16", "float16"] | None
    """The dtype in which ALiBi's slope · position is rounded. None: not at all. Needs
    position_embedding_type='alibi'. Source: Falcon's published code (bfloat16)."""
    router: Literal["activation", "float32_scores", "float32_linear", "float32_weight"] | None
    """Where a router's float32 starts: nowhere (activation), at the scores, at the linear map, or at the stored
    weight. None: float32_scores. Needs a 'sparse' layer in mlp_layer_types. Source: the published code of gpt-oss
    (activation), Mixtral (float32_scores), DeepSeek-V3 (float32_linear) and Ernie 4.5 (float32_weight)."""
    router_weights: Literal["activation", "float32"] | None
    """The dtype of the weights that the outputs of the experts are multiplied with. None: float32. Needs a 'sparse'
    layer in mlp_layer_types. Source: the published code of Qwen3-MoE (activation) and DeepSeek-V3 (float32)."""
    attention_upcast: bool | None
    """Scores are products of float32 queries and keys in the plain backend; the fused ones sum in float32 anyway.
    Needs a layer of layer_types with softmax attention. Source: GPT-Neo's and GPT-J's published code."""
    residual_in_fp32: bool | None
    """The residual stream is kept in float32 whatever the dtype of the weights, and rounded to that dtype before
    each norm. Source: Mamba's published code."""
    embedding_multiplier_in_weight_dtype: bool | None
    """The factor embedding_multiplier belongs to the table, in the weight's dtype, and leaves `inputs_embeds` as
    they are. Needs an embedding_multiplier other than 1. Source: Gemma's published code."""
    parallel_sum_order: Literal["residual_first", "branches_first"] | None
    """What a parallel block adds first: (x + mixer) + mlp, or x + (mixer + mlp). None: residual_first. Needs a
    parallel block_type. Source: GPT-J's and GPT-NeoX's published code."""

class MupMultipliers(TypedDict, total=False):
    key: float | None
    """Factor on the projected keys before they are cached. None: 1. Needs a layer of layer_types with softmax
    attention. Source: Falcon-H1, arXiv 2507.22448, §3.2."""
    attention_in: float | None
    """Factor on the input of the attention beside a recurrence. None: 1. Needs a layer of layer_types that is one of
    ['hybrid', 'hybrid_sliding']. Source: Falcon-H1, arXiv 2507.22448, §3.2."""
    attention_out: float | None
    """Factor on the output of the attention beside a recurrence. None: 1. Needs a layer of layer_types that is one
    of ['hybrid', 'hybrid_sliding']. Source: Falcon-H1, arXiv 2507.22448, §3.2."""
    linear_in: float | None
    """Factor on the input of a state space model. None: 1. Needs a linear_attention_type of ['mamba2']. Source:
    Falcon-H1, arXiv 2507.22448, §3.2."""
    linear_out: float | None
    """Factor on the output of a state space model. None: 1. Needs a linear_attention_type of ['mamba2']. Source:
    Falcon-H1, arXiv 2507.22448, §3.2."""
    linear_sections: Any | None
    """Factors on the sections z, x, B, C and dt of a state space model's projection. None: 1 each. Needs a
    linear_attention_type of ['mamba2']. Source: Falcon-H1, arXiv 2507.22448, §3.2."""
    mlp: Any | None
    """Factors on the gate before its activation and on the output. None: 1 each. Needs a layer with an MLP, which
    block_type='mixer_only' lacks. Source: Falcon-H1, arXiv 2507.22448, §3.2."""

class Mtp(TypedDict, total=False):
    layer_type: Literal["full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "compressed_sparse_attention", "heavily_compressed_attention", "linear_attention", "conv", "hybrid", "hybrid_sliding", "moe"] | None
    """The layer_type of these layers, one that a layer of the model has; the last such layer is the one they are
    like. None: the last layer's. Needs num_mtp_layers. Source: transformers."""
    mlp_layer_type: Literal["dense", "sparse"] | None
    """The mlp_layer_type of these layers, one that a layer of the model has. None: that of the layer they are like.
    Needs num_mtp_layers. Source: transformers."""
    projection: Literal["one_per_depth", "one_for_all"] | None
    """Norms and projection around these layers: one_per_depth or one_for_all. None: one_per_depth. Needs
    num_mtp_layers. Source: DeepSeek-V3, arXiv 2412.19437, §2.2 (one_per_depth); Qwen3-Next's published code
    (one_for_all)."""
    hidden_states_first: bool | None
    """The projection reads [hidden state; embedding], instead of [embedding; hidden state]. Needs num_mtp_layers.
    Source: transformers."""
    loss_coef: float | None
    """Factor λ on the mean loss of these layers, in training. None: 0.3. Needs num_mtp_layers. Source: DeepSeek-V3,
    arXiv 2412.19437, §2.2 and §4.2 (0.3, later 0.1)."""

class SwigluConfig(TypedDict, total=False):
    alpha: float | None
    """The activation of the gate in experts is x · sigmoid(alpha · x). None: hidden_act. Needs a 'sparse' layer in
    mlp_layer_types and gated_mlp=True. Source: gpt-oss (OpenAI 2025), arXiv 2508.10925."""
    up_offset: float | None
    """Added to the up projection of an expert, which the gate then multiplies. None: 0. Needs a 'sparse' layer in
    mlp_layer_types and gated_mlp=True. Source: gpt-oss (OpenAI 2025), arXiv 2508.10925 (1)."""
    clamp_behind_activation: bool | None
    """The gate is clamped to at most the limit behind its activation, not before it. Needs a swiglu_limit,
    swiglu_config.shared_limit or swiglu_config.dense_limit. Source: Step 3.5 Flash (StepFun 2026)."""
    dense_limit: float | None
    """The limit of a dense MLP: its gate is clamped to at most this, the up projection to ± this. None: neither.
    Needs a layer with a dense MLP of its own and gated_mlp=True. Source: Step 3.5 Flash (StepFun 2026)."""
    dense_alpha: float | None
    """The activation of the gate in a dense MLP is x · sigmoid(dense_alpha · x). None: hidden_act. Needs a layer
    with a dense MLP of its own and gated_mlp=True. Source: MiniMax-M3 (MiniMax 2026)."""
    dense_up_offset: float | None
    """Added to the up projection of a dense MLP, which the gate then multiplies. None: 0. Needs a layer with a dense
    MLP of its own and gated_mlp=True. Source: MiniMax-M3 (MiniMax 2026) (1)."""
    activation_sparsity: float | None
    """The share of the gate's channels of a dense MLP that is silenced in front of its activation, were they
    distributed normally: max(0, gate - mean - deviation · its quantile). None: none. Needs a layer with a dense
    MLP of its own and gated_mlp=True. Source: Gaussian top-k, You et al. 2025 (Spark Transformer), arXiv
    2506.06644; Gemma 3n (Google 2025)."""
    gate_softcap: float | None
    """In MLPs and experts the gate's activation is cap · tanh(gate / cap) · sigmoid(gate). None: hidden_act. Needs a
    layer with an MLP and gated_mlp=True. Source: SiTU, Kimi K3 (Moonshot AI 2026); Inkling 2 (Thinking Machines
    2026)."""
    up_softcap: float | None
    """In MLPs and experts the up projection becomes cap · tanh(up / cap). None: it stays. Needs a layer with an MLP
    and gated_mlp=True. Source: SiTU, Kimi K3 (Moonshot AI 2026); Inkling 2 (Thinking Machines 2026)."""
    shared_limit: float | None
    """The limit of shared experts, 0 for none. None: swiglu_limit. Needs n_shared_experts and gated_mlp=True.
    Source: Step 3.5 Flash (StepFun 2026)."""

class Router(TypedDict, total=False):
    bias: bool | None
    """The router has a learned bias on its logits. Needs a 'sparse' layer in mlp_layer_types. Source: gpt-oss
    (OpenAI 2025), arXiv 2508.10925."""
    logit_softcapping: float | None
    """The router's logits become cap · tanh(logit / cap). None: no cap. Needs a 'sparse' layer in mlp_layer_types.
    Source: Laguna (Poolside 2026)."""
    input_norm: bool | None
    """What the router reads passes an RMS norm with a weight first. Needs a 'sparse' layer in mlp_layer_types.
    Source: Gemma 4's published code."""
    input_multiplier: float | None
    """Constant factor on what the router reads, behind its norm. None: 1. Needs router.input_norm=True. Source:
    Gemma 4's published code."""
    jitter_noise: float | None
    """In training the input of the layer is multiplied by U(1 - noise, 1 + noise). None: 0. Needs a 'sparse' layer
    in mlp_layer_types. Source: Switch Transformer, Fedus et al. 2021, arXiv 2101.03961, §2.4."""
    score_after_topk: bool | None
    """Experts are selected by their logits and the selected ones alone are scored, instead of all before. Needs a
    'sparse' layer in mlp_layer_types. Source: gpt-oss (OpenAI 2025), arXiv 2508.10925; Llama 4 (Meta 2025)."""
    sparsemixer_jitter_eps: float | None
    """Half of the threshold of sparsemixer. None: 0.01. Needs scoring_func='sparsemixer'. Source: Liu et al. 2024,
    arXiv 2409.12136."""
    norm_topk_eps: float | None
    """The eps in that division. None: 1e-20. Needs norm_topk_prob=True. Source: DeepSeek-V3's published code."""
    norm_topk_min: float | None
    """The min in that division. None: no such bound. Needs norm_topk_prob=True. Source: Ernie 4.5's published code."""
    group_score: Literal["top2_sum", "max"] | None
    """Score of a group: the sum of its two best experts, or its best one. None: top2_sum. Needs n_group. Source:
    DeepSeek-V3, arXiv 2412.19437 (top2_sum); DeepSeek-V2, arXiv 2405.04434 (max)."""
    group_mask_value: Literal["-inf", "zero"] | None
    """What the scores of experts outside the chosen groups are set to before the selection. None: -inf. Needs
    n_group. Source: DeepSeek-V3's published code (-inf); DeepSeek-V2's (zero)."""
    latent_norm: bool | None
    """What the routed experts give together passes an RMS norm before it is projected back from moe_latent_size
    channels. None: no. Needs moe_latent_size. Source: Kimi K3 (Moonshot AI 2026)."""
    per_expert_scale: bool | None
    """A learned factor per expert on the weights. Needs a 'sparse' layer in mlp_layer_types. Source: Gemma 4's
    published code."""
    num_hash_layers: int | None
    """In the sparse layers among the first so many, a table says which experts a token goes to, by its id; the
    router's scores are their weights. None: 0. Needs a 'sparse' layer in mlp_layer_types. Source: Roller et al.
    2021, Hash Layers, arXiv 2106.04426; DeepSeek-V4 (DeepSeek 2026), §2.1."""
    weight_on_input: bool | None
    """The weight multiplies an expert's input instead of its output. Needs a 'sparse' layer in mlp_layer_types.
    Source: Llama 4 (Meta 2025)."""

class AttentionFactors(TypedDict, total=False):
    query_rank: int | None
    """Rank of the queries: channels of the latent that all heads share with attention_type
    'multi_matrix_factorization', products that are averaged with 'tensor_product'. None: 8 · head_dim; 6. Needs
    an attention_type of ['multi_matrix_factorization', 'tensor_product']. Source: Step-3, arXiv 2507.19427; Zhang
    et al. 2025, arXiv 2501.06425."""
    query_norm: bool | None
    """The latent of the queries passes an RMS norm. None: yes. Needs attention_type='multi_matrix_factorization'.
    Source: Step-3's published code (yes)."""
    key_rank: int | None
    """Products that are averaged to the keys. None: 2. Needs attention_type='tensor_product'. Source: Zhang et al.
    2025, arXiv 2501.06425."""
    value_rank: int | None
    """Products that are averaged to the values. None: 2. Needs attention_type='tensor_product'. Source: Zhang et al.
    2025, arXiv 2501.06425."""

class BlockConfig(TypedDict, total=False):
    gated_norm_rank: int | None
    """Channels of the two maps that make the gate behind a norm, with a block_type that has such gates. None: 16.
    Needs a block_type of ['gated_norm', 'gated_attn_norm']. Source: A.X K2 (SK Telecom 2026)."""
    laurel_rank: int | None
    """Channels of a low-rank map of what attention reads, which joins the residual stream beside it. None: no such
    map. Needs a block_type of ['sandwich_norm', 'altup']. Source: LAuReL, Menghani et al. 2024, arXiv 2411.07501;
    Gemma 3n (Google 2025)."""
    altup_num_inputs: int | None
    """How many residual streams there are. None: 4. Needs block_type='altup'. Source: AltUp, Baykal et al. 2023,
    arXiv 2301.13310; Gemma 3n (Google 2025)."""
    altup_active_idx: int | None
    """The residual stream that layers compute with. None: 0. Needs block_type='altup'. Source: Gemma 3n (Google
    2025)."""
    altup_coef_clip: float | None
    """The maps that mix streams are clamped to ± this in training. None: they are not. Needs block_type='altup'.
    Source: Gemma 3n (Google 2025)."""
    altup_correct_scale: bool | None
    """Per-layer inputs are gated by the computed residual stream times a weight for each channel. None: yes. Needs
    block_type='altup'. Source: Gemma 3n (Google 2025)."""
    attn_res_block_size: int | None
    """How many layers a block has, within which outputs are summed; mixers and MLPs attend over the sums of all
    blocks so far. None: an eighth of the layers. Needs block_type='attention_residual'. Source: Block attention
    residuals, Kimi team 2026, arXiv 2603.15031; Kimi K3 (Moonshot AI 2026)."""

class ResidualFactors(TypedDict, total=False):
    full_attn_alpha: float | None
    """The α of the sum after softmax attention: what its residual is multiplied with. None: 1. Needs a block_type of
    ['post_norm', 'pre_norm_residual']. Source: DeepNet, Wang et al. 2022, arXiv 2203.00555; MiniMax-01, arXiv
    2501.08313."""
    full_attn_beta: float | None
    """The β of the sum after softmax attention: what its output is multiplied with. None: 1. Needs a block_type of
    ['post_norm', 'pre_norm_residual']. Source: DeepNet, Wang et al. 2022, arXiv 2203.00555; MiniMax-01, arXiv
    2501.08313."""
    linear_attn_alpha: float | None
    """The α of the sum after a recurrence: what its residual is multiplied with. None: 1. Needs a block_type of
    ['post_norm', 'pre_norm_residual']. Source: DeepNet, Wang et al. 2022, arXiv 2203.00555; MiniMax-01, arXiv
    2501.08313."""
    linear_attn_beta: float | None
    """The β of the sum after a recurrence: what its output is multiplied with. None: 1. Needs a block_type of
    ['post_norm', 'pre_norm_residual']. Source: DeepNet, Wang et al. 2022, arXiv 2203.00555; MiniMax-01, arXiv
    2501.08313."""
    mlp_alpha: float | None
    """The α of the sum after an MLP: what its residual is multiplied with. None: 1. Needs a block_type of
    ['post_norm', 'pre_norm_residual']. Source: DeepNet, Wang et al. 2022, arXiv 2203.00555; MiniMax-01, arXiv
    2501.08313."""
    mlp_beta: float | None
    """The β of the sum after an MLP: what its output is multiplied with. None: 1. Needs a block_type of
    ['post_norm', 'pre_norm_residual']. Source: DeepNet, Wang et al. 2022, arXiv 2203.00555; MiniMax-01, arXiv
    2501.08313."""
    stream: float | None
    """The β of hyper-connections is this times a sigmoid. None: 2. Needs block_type='hyper_connection'. Source: Xie
    et al. 2025, arXiv 2512.24880 (2); Hy4 (Tencent 2026)."""

class PositionConfig(TypedDict, total=False):
    offset: int | None
    """The number of the first position: rows skipped at the start of a learned table. None: 0. Needs learned or
    sinusoidal positions. Source: fairseq's published code (2, as OPT and XGLM have it)."""
    ids_from_mask: bool | None
    """Where no positions are given they count the attended tokens, so that padding takes none. Needs learned or
    sinusoidal positions. Source: OPT's published code."""
    sinusoid_layout: Literal["interleaved", "halves", "closed_halves"] | None
    """Order of the sinusoids: sine and cosine alternate (interleaved), sines before cosines (halves), or so with
    wave lengths from 1 to 10000 inclusive (closed_halves). None: interleaved. Needs
    position_embedding_type='sinusoidal'. Source: Vaswani et al. 2017, §3.5; CTRL, arXiv 1909.05858;
    tensor2tensor."""
    alibi_scaled: bool | None
    """The bias of ALiBi is multiplied by the attention scale. Needs position_embedding_type='alibi'. Source:
    Falcon's published code."""
    rope_channels: Literal["first", "last"] | None
    """With a partial_rotary_factor the first channels of a head rotate, or the last. None: first. Needs a layer with
    softmax attention that rotates (position_embedding_type, no_rope_layers). Source: GPT-J's published code
    (first); DeepSeek-V4 (last)."""
    rope_values: bool | None
    """Values rotate as keys do, and what a query reads of them is rotated back by its own position. With
    attention_k_eq_v the values are the keys, normed and rotated, and are cached once. Needs a layer with softmax
    attention that rotates (position_embedding_type, no_rope_layers). Source: VO-RoPE (Su 2025); DeepSeek-V4,
    §2.3.3."""

class AttnTemperature(TypedDict, total=False):
    layers: Literal["all", "rope", "no_rope"] | None
    """In which layers: in all, in those that rotate, or in those that do not. None: nowhere. Needs a layer with
    softmax attention that it names (no_rope_layers says which rotate). Source: Nakanishi 2025, arXiv 2501.19399;
    Llama 4 (Meta 2025)."""
    scale: float | None
    """Strength of the query temperature. Needs attn_temperature.layers. Source: Llama 4 (Meta 2025)."""
    floor_scale: float | None
    """How many positions a step of the query temperature lasts. Needs attn_temperature.layers. Source: Llama 4 (Meta
    2025)."""
    offset: int | None
    """Added to the position before the steps are counted. None: 0. Needs attn_temperature.layers. Source: Llama 4's
    published code (1); Ministral 3's (0)."""

class LinearAttnConfig(TypedDict, total=False):
    bias: bool | None
    """The projections into and out of the mixer have biases. Needs a linear_attention_type of ['gated_delta_net',
    'kimi_delta_attention', 'delta_net', 'gated_delta_product', 'delta_product', 'linear_attention',
    'gated_linear_attention', 'lightning_attention', 'mamba2', 'mamba', 'rg_lru', 'short_conv']. Source: Mamba's
    published code."""
    conv_bias: bool | None
    """The convolution has a bias. Needs a linear_attention_type of ['gated_delta_net', 'kimi_delta_attention',
    'delta_net', 'gated_delta_product', 'delta_product', 'linear_attention', 'gated_linear_attention',
    'lightning_attention', 'mamba2', 'mamba', 'rg_lru', 'short_conv']. Source: Mamba's published code."""
    act: Literal["none", "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh"] | None
    """Activation after the convolution. Needs a linear_attention_type of ['gated_delta_net', 'kimi_delta_attention',
    'delta_net', 'gated_delta_product', 'delta_product', 'linear_attention', 'gated_linear_attention',
    'lightning_attention', 'mamba2', 'mamba', 'rg_lru', 'short_conv']. Source: Mamba, arXiv 2312.00752, §3.4."""
    qk_norm: Literal["l2", "none"] | None
    """Whether queries and keys are L2-normalised. Needs a linear_attention_type of ['gated_delta_net',
    'kimi_delta_attention', 'delta_net', 'gated_delta_product', 'delta_product']. Source: Yang et al. 2024, arXiv
    2406.06484, §3.4."""
    feature_map: Literal["none", "elu_plus_one", "relu"] | None
    """Map that makes queries and keys positive. Needs a linear_attention_type of ['gated_delta_net',
    'kimi_delta_attention', 'delta_net', 'gated_delta_product', 'delta_product', 'linear_attention',
    'gated_linear_attention', 'lightning_attention']. Source: Katharopoulos et al. 2020, arXiv 2006.16236, §3.2.1."""
    multiplier: float | None
    """Scale of the outputs. None: linear_key_head_dim ** -0.5. Needs a linear_attention_type of ['gated_delta_net',
    'kimi_delta_attention', 'delta_net', 'gated_delta_product', 'delta_product', 'linear_attention',
    'gated_linear_attention', 'lightning_attention']. Source: own to zoo."""
    decay: Literal["softplus", "bounded_sigmoid", "log_sigmoid", "constant"] | None
    """How the state forgets: softplus as in Mamba, bounded_sigmoid, log_sigmoid as in gated linear attention, or a
    constant per head. modeling_zoo/recurrent_decays.py has the formulas. Needs a linear_attention_type of
    ['gated_delta_net', 'kimi_delta_attention', 'gated_delta_product', 'gated_linear_attention',
    'lightning_attention']. Source: Mamba, arXiv 2312.00752; Yang et al. 2023, arXiv 2312.06635; Qin et al. 2024,
    arXiv 2401.04658."""
    decay_granularity: Literal["head", "channel"] | None
    """The decay is one number per head or one per channel of the keys. Needs a linear_attention_type of
    ['gated_delta_net', 'kimi_delta_attention', 'gated_delta_product', 'gated_linear_attention']. Source: Gated
    DeltaNet, arXiv 2412.06464 (head); Kimi Linear, arXiv 2510.26692 (channel)."""
    decay_rank: int | None
    """Width of the narrow projection that the decay comes through. None: one projection, without a narrow one. Needs
    a linear_attention_type of ['gated_delta_net', 'kimi_delta_attention', 'gated_delta_product',
    'gated_linear_attention']. Source: Yang et al. 2023, arXiv 2312.06635, §4.4."""
    lower_bound: float | None
    """The bound of a bounded_sigmoid decay, below 0. Needs a linear_attention_type of ['gated_delta_net',
    'kimi_delta_attention', 'gated_delta_product', 'gated_linear_attention']. Source: Ling 3's published code."""
    decay_normalizer: float | None
    """The divisor of a log_sigmoid decay. None: 16. Needs a linear_attention_type of ['gated_delta_net',
    'kimi_delta_attention', 'gated_delta_product', 'gated_linear_attention']. Source: Yang et al. 2023, arXiv
    2312.06635, §4.4."""
    allow_neg_eigval: bool | None
    """Writes have a strength in (0, 2) instead of (0, 1), so that the state can flip a direction. Needs a
    linear_attention_type of ['gated_delta_net', 'kimi_delta_attention', 'delta_net', 'gated_delta_product',
    'delta_product']. Source: Grazzi et al. 2024, arXiv 2411.12537."""
    num_householder: int | None
    """Keys and values that a delta product writes for each token, one behind the other. None: 2. Needs a
    linear_attention_type of ['gated_delta_product', 'delta_product']. Source: DeltaProduct, Siems et al. 2025,
    arXiv 2502.10297."""
    output_norm: Literal["head", "group", "full", "none"] | None
    """RMS norm of the output over each head, each group of heads, all of it, or none. Needs a linear_attention_type
    of ['gated_delta_net', 'kimi_delta_attention', 'delta_net', 'gated_delta_product', 'delta_product',
    'linear_attention', 'gated_linear_attention', 'lightning_attention', 'mamba2', 'mamba', 'rg_lru']. Source:
    Mamba-2, arXiv 2405.21060, §7.1 (group); RetNet, arXiv 2307.08621 (head)."""
    norm_before_gate: bool | None
    """The output is normalised before it is gated, instead of after. Needs a linear_attention_type of
    ['gated_delta_net', 'kimi_delta_attention', 'delta_net', 'gated_delta_product', 'delta_product',
    'linear_attention', 'gated_linear_attention', 'lightning_attention', 'mamba2', 'mamba', 'rg_lru']. Source:
    Mamba-2's published code (after); Gated DeltaNet's (before)."""
    norm_eps: float | None
    """Epsilon of the norms in the mixer. None: norm_eps. Needs a linear_attention_type of ['gated_delta_net',
    'kimi_delta_attention', 'delta_net', 'gated_delta_product', 'delta_product', 'linear_attention',
    'gated_linear_attention', 'lightning_attention', 'mamba2', 'mamba', 'rg_lru']. Source: own to zoo."""
    output_gate: Literal["none", "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh"] | None
    """Activation of the gate on the output, "none" for no gate. Needs a linear_attention_type of ['gated_delta_net',
    'kimi_delta_attention', 'delta_net', 'gated_delta_product', 'delta_product', 'linear_attention',
    'gated_linear_attention', 'lightning_attention', 'mamba2', 'mamba', 'rg_lru']. Source: Mamba, arXiv
    2312.00752, §3.4; RetNet, arXiv 2307.08621."""
    gate_rank: int | None
    """Width of the narrow projection that the gate comes through. None: one projection, without a narrow one. Needs
    a linear_attention_type of ['gated_delta_net', 'kimi_delta_attention', 'delta_net', 'gated_delta_product',
    'delta_product', 'linear_attention', 'gated_linear_attention', 'lightning_attention']. Source: Kimi Linear,
    arXiv 2510.26692."""
    time_step_limit: Any | None
    """Bounds [low, high] of a state space model's time steps, None for open. Needs a linear_attention_type of
    ['mamba2']. Source: Mamba-2's published code."""
    time_step_rank: int | None
    """Width of the projection that the time steps come through. None: hidden_size / 16, rounded up. Needs a
    linear_attention_type of ['mamba']. Source: Mamba, arXiv 2312.00752, §3.6."""
    step_norm: Literal["none", "rms_norm", "rms_norm_without_weight"] | None
    """Norm on the time steps, B and C of a Mamba layer. Needs a linear_attention_type of ['mamba']. Source: Jamba,
    arXiv 2403.19887, §6.4; FalconMamba, arXiv 2410.05355 (without a weight)."""
    time_step_min: float | None
    """Least initial time step. None: 0.001. Needs a linear_attention_type of ['gated_delta_net',
    'kimi_delta_attention', 'gated_delta_product', 'gated_linear_attention', 'mamba2', 'mamba']. Source: Mamba,
    arXiv 2312.00752, §3.6."""
    time_step_max: float | None
    """Largest initial time step. None: 0.1. Needs a linear_attention_type of ['gated_delta_net',
    'kimi_delta_attention', 'gated_delta_product', 'gated_linear_attention', 'mamba2', 'mamba']. Source: Mamba,
    arXiv 2312.00752, §3.6."""
    time_step_floor: float | None
    """Initial time steps are raised to this number. None: 1e-4. Needs a linear_attention_type of ['gated_delta_net',
    'kimi_delta_attention', 'gated_delta_product', 'gated_linear_attention', 'mamba2', 'mamba']. Source: Mamba's
    published code."""

class MlaConfig(TypedDict, total=False):
    norm_eps: float | None
    """Epsilon of the RMS norms of the two latents, apart from norm_eps. None: 1e-6. Needs attention_type='latent'.
    Source: DeepSeek-V2's published code."""
    scale_q_lora: bool | None
    """Queries are multiplied by sqrt(hidden_size / q_lora_rank). Needs attention_type='latent'. Source:
    LongCat-Flash, arXiv 2509.01322, §2.2."""
    scale_kv_lora: bool | None
    """The latent of keys and values is multiplied by sqrt(hidden_size / kv_lora_rank). Needs
    attention_type='latent'. Source: LongCat-Flash, arXiv 2509.01322, §2.2."""
    scale_by_mscale: bool | None
    """Scores are multiplied by (0.1 · mscale_all_dim · ln(factor) + 1)², in a layer whose rope_parameters have an
    mscale_all_dim and a rope_type other than default. None: yes, with rope. Needs attention_type='latent'.
    Source: YaRN, arXiv 2309.00071, §3.4, as DeepSeek-V2 applies it."""
    norm: bool | None
    """The two latents pass an RMS norm. None: yes. Needs attention_type='latent'. Source: DeepSeek-V2's published
    code (yes); grouped-query attention as latent attention has none."""
    query_bias: bool | None
    """The last projection to the queries has a bias. None: no. Needs attention_type='latent'. Source: own to zoo,
    for models whose queries have one (Qwen2, arXiv 2407.10671)."""
    raw_query_latent: bool | None
    """Queries, and a gate beside them, are projected from their latent behind its norm and in front of it, one next
    to the other. None: no. Needs attention_type='latent'. Source: A.X K2 (SK Telecom 2026)."""
    rope_key_norm: bool | None
    """The key that all heads share passes an RMS norm before it is rotated, queries do not. None: no. Needs
    attention_type='latent'. Source: dots3 (dots.llm 2026)."""
    rope_heads: int | None
    """Heads of the rotated key: its qk_rope_head_dim channels, and those of a query that read them, are rotated and
    normalised (qk_norm) in so many groups, each as a head of its own. None: 1. Needs attention_type='latent'.
    Source: own to zoo: all key heads of a layer as the one rotated key, after TransMLA, arXiv 2502.07864."""
    query_rank: int | None
    """In attention with keys and values per head, queries are projected through so many channels, normed. None: one
    full projection. Needs a layer of layer_types with softmax attention. Source: DeepSeek-V2, arXiv 2405.04434,
    §2.1.2, here without a latent of keys; DeepSeek-V4."""
    output_rank: int | None
    """The output of attention is projected through so many channels of each of output_groups groups of heads, then
    mixed. None: one full projection. Needs a layer of layer_types with softmax attention. Source: DeepSeek-V4
    (DeepSeek 2026), §2.3.1 (grouped output projection)."""
    output_groups: int | None
    """In how many groups of heads the output goes through its rank. None: 1. Needs mla_config.output_rank. Source:
    DeepSeek-V4 (DeepSeek 2026), §2.3.1."""
    compressed_sparse_rate: int | None
    """How many tokens, behind as many of the window before, become one entry of a compressed_sparse_attention layer.
    None: 4. Needs a 'compressed_sparse_attention' layer in layer_types. Source: DeepSeek-V4 (DeepSeek 2026),
    §2.3.1."""
    heavily_compressed_rate: int | None
    """How many tokens become one entry of a heavily_compressed_attention layer. None: 128. Needs a
    'heavily_compressed_attention' layer in layer_types. Source: DeepSeek-V4 (DeepSeek 2026), §2.3.2."""

class Indexer(TypedDict, total=False):
    rope_interleave: bool | None
    """Neighbouring channels of the indexer rotate together, which need not be what the model's rope_interleave says.
    Needs an 'indexed_attention' layer in layer_types. Source: DeepSeek-V3.2's published code."""
    norm_eps: float | None
    """Epsilon of the norm on the indexer's keys. None: mla_config.norm_eps. Needs an 'indexed_attention' layer in
    layer_types. Source: Hy4 (Tencent 2026)."""
    block_size: int | None
    """With attention_type 'grouped_query', keys are chosen in blocks of so many neighbours, counted from the first
    token of a sequence: index_topk / block_size for a query, by the best key of each. None: 128, with 'latent' 1.
    Needs an 'indexed_attention' layer in layer_types. Source: MiniMax-M3 (MiniMax 2026)."""
    local_blocks: int | None
    """With attention_type 'grouped_query', so many blocks up to that of the query are always among those chosen.
    None: 1. Needs an 'indexed_attention' layer in layer_types. Source: MiniMax-M3 (MiniMax 2026)."""
    warmup: bool | None
    """Attention is dense and the divergence goes over all keys, instead of over the selected ones. Needs an
    'indexed_attention' layer in layer_types. Source: DeepSeek-V3.2, arXiv 2512.02556, §2.1.1."""

class QkNormConfig(TypedDict, total=False):
    scope: Literal["head", "full"] | None
    """The norm goes over each head or over the full projection. None: head. Needs qk_norm. Source: Qwen3, arXiv
    2505.09388 (head); OLMo 2, arXiv 2501.00656 (full)."""
    weight: Literal["shared", "per_head", "keys", "none"] | None
    """The norm's weight is shared by the heads, one for each head, on keys alone and shared by their heads, or none.
    None: shared. Needs qk_norm. Source: Qwen3, arXiv 2505.09388 (shared); Command R+, Cohere 2024 (per_head);
    nanochat, Karpathy 2025 (none); DeepSeek-V4 (keys)."""
    bias: bool | None
    """A layer norm on queries and keys has a bias. Needs qk_norm. Source: Phi (Microsoft 2023); Chameleon, arXiv
    2405.09818."""
    position: Literal["before_rope", "after_rope"] | None
    """The norm is applied before or after the rotation. None: before_rope. Needs qk_norm. Source: Qwen3, arXiv
    2505.09388 (before_rope); Llama 4, Meta 2025 (after_rope)."""
    layers: Literal["all", "rope"] | None
    """The norm is in all layers, or in those alone that rotate. None: all. Needs qk_norm. Source: Llama 4 (Meta
    2025)."""
    eps: float | None
    """Epsilon of the norm on queries and keys. None: norm_eps. Needs qk_norm. Source: own to zoo."""

class ZooConfig(PreTrainedConfig):
    """A decoder, described by one name or number per concept.

    `ZooConfig(num_hidden_layers=12, layer_types="3*linear_attention, full_attention", ...)`; `zoo flags` lists
    the fields, which stand by concept in `fields_<concept>.py` with meaning, source and checks. What is left at
    None is derived from the rest, now and when config.json is read again. A bad value, a contradiction or a name
    that does not exist raises at construction (`huggingface_hub.errors.StrictDataclassError`, or ValueError) with
    the field, the value and what is allowed."""
    vocab_size: int
    """Rows of the token table: how many tokens there are. Source: transformers."""
    hidden_size: int
    """Width of the residual stream, which every layer reads and adds to. Source: transformers."""
    num_hidden_layers: int
    """How many layers the model has. Source: transformers."""
    tie_word_embeddings: bool
    """The matrix of the head is the token table. Source: Press & Wolf 2017, arXiv 1608.05859."""
    embedding_size: int | None
    """Width of the token table and of the head where it is not hidden_size, with a projection at each end. None:
    hidden_size. Source: Zhang et al. 2022, OPT, arXiv 2205.01068 (the 350m model)."""
    embedding_multiplier: float | int
    """Factor on the embeddings. precision.embedding_multiplier_in_weight_dtype says where the product is rounded.
    Source: Vaswani et al. 2017, §3.4; Granite's name."""
    logits_scaling: float | int
    """Logits are divided by this number, before they are capped. Source: Granite 3 (IBM 2024)."""
    final_logit_softcapping: float | int | None
    """Logits become cap · tanh(logit / cap). None: no cap. Source: Gemma 2, arXiv 2408.00118, §2."""
    lm_head_bias: bool
    """The head has a learned bias on the logits. Source: GPT-J (Wang & Komatsuzaki 2021)."""
    suppressed_token_ids: list[int] | None
    """Tokens that are never produced: their logits become the smallest number of the dtype. Source: Chameleon, arXiv
    2405.09818, as transformers runs it."""
    embedding_dropout: float | int
    """Rate of dropout on the embeddings, in training. Source: Vaswani et al. 2017, §5.4."""
    residual_dropout: float | int
    """Rate of dropout on the output of each sub-layer before it joins the residual stream, in training. Source:
    Vaswani et al. 2017, §5.4."""
    initializer_range: float | int
    """Standard deviation of a new matrix, where initializer.type does not say otherwise. Source: transformers."""
    use_cache: bool
    """Whether a forward returns its cache. Source: transformers."""
    pad_token_id: int | None
    """The token that pads the shorter rows of a batch. Source: transformers."""
    bos_token_id: int | list[int] | None
    """The token that begins a text, or several. Source: transformers."""
    eos_token_id: int | list[int] | None
    """The token that ends a text, or several. Source: transformers."""
    source_config: dict[str, Any] | None
    """The config.json this model was converted from, unchanged, so that converting back loses nothing. Source: own
    to zoo."""
    source_extras: dict[str, Any] | None
    """What the source held beside this model (a vision tower, layers that predict further tokens): how many
    `tensors` of which names, how weights kept as they were stored are `quantized`, and the `repository` and
    `revision` they came from. Source: own to zoo."""
    surgery: dict[str, Any] | None
    """How this model was made from another by `zoo surgery`, `zoo heal` and `zoo merge`: the `source`, and the
    `operations` in their order with values, exactness, calibration, healing and what was measured. Source: own to
    zoo."""
    attention_type: Literal["grouped_query", "differential", "forgetting", "stick_breaking", "path", "value_residual", "multi_matrix_factorization", "tensor_product", "grouped_tied", "latent"] | list[Literal["grouped_query", "differential", "forgetting", "stick_breaking", "path", "value_residual", "multi_matrix_factorization", "tensor_product", "grouped_tied", "latent"] | None]
    """The mechanism of softmax attention, one name for all layers or one for each (None for a layer without). Needs
    a layer of layer_types with softmax attention. Source: grouped_query: Ainslie et al. 2023, arXiv 2305.13245;
    differential: Ye et al. 2024, arXiv 2410.05258; forgetting: Lin et al. 2025, arXiv 2503.02130; stick_breaking:
    Tan et al. 2024, arXiv 2410.17980; path: Yang et al. 2025, arXiv 2505.16381; value_residual: Zhou et al. 2024,
    arXiv 2410.17897; multi_matrix_factorization: Hu et al. 2024, arXiv 2412.19255; tensor_product: Zhang et al.
    2025, arXiv 2501.06425; grouped_tied: Zadouri et al. 2025, arXiv 2505.21487; latent: DeepSeek-V2, arXiv
    2405.04434."""
    num_attention_heads: int
    """Heads of the queries. Source: Vaswani et al. 2017, §3.2.2."""
    num_key_value_heads: int | None
    """Heads of keys and values, a divisor of num_attention_heads; 1 is multi-query attention. None: as many as
    num_attention_heads, 1 with attention_type 'multi_matrix_factorization' alone. Source: Shazeer 2019, arXiv
    1911.02150; Ainslie et al. 2023, arXiv 2305.13245."""
    head_dim: int | None
    """Channels of a head. None: hidden_size / num_attention_heads. Source: transformers."""
    v_head_dim: int | None
    """Channels of a head's value, hence of its output; latent attention always has it. None: head_dim. Needs a layer
    of layer_types with softmax attention. Source: DeepSeek-V2, arXiv 2405.04434; MiMo-V2-Flash (Xiaomi 2025)."""
    attention_value_scale: float | int | None
    """Factor on the values before they are cached. None: 1. Needs a layer of layer_types with softmax attention.
    Source: MiMo-V2-Flash (Xiaomi 2025)."""
    value_norm: bool
    """Each head's values pass an RMS norm without a weight before they are cached. Needs a layer of layer_types with
    softmax attention. Source: Gemma 4's published code."""
    attention_k_eq_v: bool
    """The values are the projected keys, before those are normalised and rotated. Needs a layer of layer_types with
    softmax attention. Source: Gemma 4's published code."""
    layer_types: list[Literal["full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "compressed_sparse_attention", "heavily_compressed_attention", "linear_attention", "conv", "hybrid", "hybrid_sliding", "moe"]] | None
    """The type of each layer by transformers' names: what a token attends to, hence the mask and the cache. A number
    n: every n-th is full_attention, the others slide, or are what linear_attention_type or attention_chunk_size
    is for. None: sliding_attention with a sliding_window, else full_attention. Source: transformers."""
    sliding_window: int | None
    """A token sees itself and window - 1 before it, in the layers that slide. Without layer_types it is one for
    every layer. Needs a layer of layer_types that is one of ['sliding_attention', 'hybrid_sliding',
    'compressed_sparse_attention', 'heavily_compressed_attention']. Source: Beltagy et al. 2020, arXiv 2004.05150."""
    attention_chunk_size: int | None
    """A token sees what is before it in its own chunk of so many tokens, in chunked_attention layers. Needs a layer
    of layer_types that is one of ['chunked_attention']. Source: Llama 4 (Meta 2025)."""
    sparse_attention_pattern: Literal["none", "strided", "fixed", "banded"] | list[Literal["none", "strided", "fixed", "banded"]] | None
    """Factorised pattern over a full_attention layer, one name for all of them or one for each layer. Source: Child
    et al. 2019, arXiv 1904.10509, §4.2; "banded": Brown et al. 2020, arXiv 2005.14165, §2.1."""
    sparse_attention_stride: int | None
    """Stride of the factorised patterns, in tokens; the width of a band. Needs a sparse_attention_pattern. Source:
    Child et al. 2019, arXiv 1904.10509, §4.2."""
    use_bidirectional_attention: bool
    """Every token sees every other, those after it too: an encoder made of a decoder. Needs a layer of layer_types
    with softmax attention. Source: Gemma 3 embeddings (EmbeddingGemma, arXiv 2509.20354); transformers' name."""
    attention_bias: bool
    """The projections of queries, keys and values have biases. Needs a layer of layer_types with softmax attention.
    Source: transformers."""
    attention_out_bias: bool | None
    """The output projection has a bias. None: as attention_bias says. Needs a layer of layer_types with softmax
    attention. Source: own to zoo."""
    attention_multiplier: float | int | None
    """Scale of the scores. None: width of a key ** -0.5. Needs a layer of layer_types with softmax attention.
    Source: Granite 3 (IBM 2024)."""
    scale_attn_by_inverse_layer_idx: bool
    """Scores are divided by the layer's number, counted from one. Needs a layer of layer_types with softmax
    attention after the first layer. Source: Mistral-GPT-2 (Stanford CRFM 2021); transformers' GPT-2."""
    attn_logit_softcapping: float | int | None
    """Scores become cap · tanh(score / cap). None: no cap. Needs a layer of layer_types with softmax attention.
    Source: Gemma 2, arXiv 2408.00118, §2."""
    clip_qkv: float | int | None
    """Projected queries, keys and values are clamped to ± this number. None: no clamp. Needs a layer of layer_types
    with softmax attention. Source: MPT (MosaicML 2023); OLMo, arXiv 2402.00838."""
    clip_qkv_position: Literal["before_norm", "after_norm"] | None
    """Queries and keys are clamped before or after their norm. None: before_norm. Needs clip_qkv. Source: OLMoE,
    arXiv 2409.02060."""
    qk_norm: Literal["rms_norm", "layer_norm"] | None
    """The norm on queries and keys. None: no norm. Needs a layer of layer_types with softmax attention. Source:
    Henry et al. 2020, arXiv 2010.04245; Dehghani et al. 2023, arXiv 2302.05442."""
    qk_norm_config: dict[str, Any]
    """How the norm on queries and keys is done, with a qk_norm."""
    attention_sinks: Literal["all", "full_attention", "sliding_attention", "chunked_attention"] | None
    """One learned logit per head takes part in the softmax and has no value, in the layers of this type. Needs a
    layer of layer_types with softmax attention that it names. Source: gpt-oss (OpenAI 2025), arXiv 2508.10925;
    Xiao et al. 2023, arXiv 2309.17453."""
    attn_output_gate: Literal["query", "elementwise", "headwise", "elementwise_softplus", "headwise_softplus"] | None
    """A sigmoid gate on the attention output before o_proj: per channel from a q_proj that is twice as wide (query),
    or from a g_proj of its own, per channel (elementwise) or per head (headwise); the words with softplus have it
    in place of the sigmoid. None: no gate. Needs a layer of layer_types with softmax attention. Source: Qiu et
    al. 2025, arXiv 2505.06708; Laguna (Poolside 2026) with softplus."""
    attention_dropout: float | int
    """Rate of dropout on the weights of attention, in training. Needs a layer of layer_types with softmax attention.
    Source: Vaswani et al. 2017, as published in tensor2tensor."""
    kv_lora_rank: int | None
    """Rank of the latent that keys and values are made of, which is what the cache holds. None: 4 · head_dim. Needs
    attention_type='latent'. Source: DeepSeek-V2, arXiv 2405.04434, §2.1."""
    q_lora_rank: int | None
    """Rank of the latent that queries are made of. None: one full projection. Needs attention_type='latent'. Source:
    DeepSeek-V2, arXiv 2405.04434, §2.1.2."""
    qk_nope_head_dim: int | None
    """Channels of a head's query and key that do not rotate. None: head_dim, or hidden_size / num_attention_heads.
    Needs attention_type='latent'. Source: DeepSeek-V2, arXiv 2405.04434, §2.1.3."""
    qk_rope_head_dim: int | None
    """Channels of a head's query that rotate, and of the rotated key that all heads share. None: half of head_dim, 0
    without rope. Needs attention_type='latent'. Source: DeepSeek-V2, arXiv 2405.04434, §2.1.3."""
    mla_config: dict[str, Any]
    """Details of latent attention, and of other projections through a rank, key by key."""
    index_topk: int | None
    """How many keys the indexer chooses for each query. None: 2048. Needs a layer of layer_types that is one of
    ['indexed_attention', 'compressed_sparse_attention']. Source: DeepSeek-V3.2, arXiv 2512.02556, §2.1."""
    index_n_heads: int | None
    """Heads of the indexer. None: 64. Needs a layer of layer_types that is one of ['indexed_attention',
    'compressed_sparse_attention']. Source: DeepSeek-V3.2, arXiv 2512.02556, §2.1."""
    index_head_dim: int | None
    """Channels of a head of the indexer. None: 128. Needs a layer of layer_types that is one of
    ['indexed_attention', 'compressed_sparse_attention']. Source: DeepSeek-V3.2, arXiv 2512.02556, §2.1."""
    indexer_types: list[Literal["full", "shared", "none"]] | None
    """For each layer: "full" has an indexer, "shared" takes what the last one before it chose, "none" is every other
    layer. None: "full" in every indexed layer. Needs an 'indexed_attention' layer in layer_types. Source: GLM-5,
    arXiv 2603.12201."""
    indexer_loss_coef: float | int | None
    """Factor on KL(attention ‖ index scores), per token and layer, in the loss. None: 0. Needs an
    'indexed_attention' layer in layer_types. Source: DeepSeek-V3.2, arXiv 2512.02556, §2.1.1."""
    indexer: dict[str, Any]
    """Details of the indexer, key by key."""
    linear_attention_type: Literal["gated_delta_net", "kimi_delta_attention", "delta_net", "gated_delta_product", "delta_product", "linear_attention", "gated_linear_attention", "lightning_attention", "mamba2", "mamba", "rg_lru", "short_conv"] | list[Literal["gated_delta_net", "kimi_delta_attention", "delta_net", "gated_delta_product", "delta_product", "linear_attention", "gated_linear_attention", "lightning_attention", "mamba2", "mamba", "rg_lru", "short_conv"] | None] | None
    """The recurrence or convolution, one name for all layers that have one or one for each layer. Needs a layer of
    layer_types that is one of ['linear_attention', 'conv', 'hybrid', 'hybrid_sliding']. Source: arXiv 2412.06464
    (gated_delta_net), 2510.26692 (kimi_delta_attention), 2406.06484 (delta_net), 2502.10297 (gated_delta_product,
    delta_product), 2006.16236 (linear_attention), 2312.06635 (gated_linear_attention), 2401.04658
    (lightning_attention), 2405.21060 (mamba2), 2312.00752 (mamba), 2402.19427 (rg_lru), LFM2, Liquid AI 2025
    (short_conv)."""
    linear_num_key_heads: int | None
    """Heads of queries and keys; groups of a state space model; unused in a gated unit. Needs a
    linear_attention_type of ['gated_delta_net', 'kimi_delta_attention', 'delta_net', 'gated_delta_product',
    'delta_product', 'linear_attention', 'gated_linear_attention', 'lightning_attention', 'mamba2', 'mamba',
    'rg_lru']. Source: Qwen3-Next (Qwen 2025); Mamba-2, arXiv 2405.21060, §8."""
    linear_num_value_heads: int | None
    """Heads of values, a multiple of those of keys; heads of a state space model; blocks of a gated unit. Needs a
    linear_attention_type of ['gated_delta_net', 'kimi_delta_attention', 'delta_net', 'gated_delta_product',
    'delta_product', 'linear_attention', 'gated_linear_attention', 'lightning_attention', 'mamba2', 'mamba',
    'rg_lru']. Source: Qwen3-Next (Qwen 2025); Mamba-2, arXiv 2405.21060, §8; Griffin, arXiv 2402.19427."""
    linear_key_head_dim: int | None
    """Channels of a head of queries and keys; states of a state space model. Needs a linear_attention_type of
    ['gated_delta_net', 'kimi_delta_attention', 'delta_net', 'gated_delta_product', 'delta_product',
    'linear_attention', 'gated_linear_attention', 'lightning_attention', 'mamba2', 'mamba', 'rg_lru']. Source:
    Qwen3-Next (Qwen 2025); Mamba, arXiv 2312.00752."""
    linear_value_head_dim: int | None
    """Channels of a head of values; of a head of a state space model; of a block of a gated unit. Needs a
    linear_attention_type of ['gated_delta_net', 'kimi_delta_attention', 'delta_net', 'gated_delta_product',
    'delta_product', 'linear_attention', 'gated_linear_attention', 'lightning_attention', 'mamba2', 'mamba',
    'rg_lru']. Source: Qwen3-Next (Qwen 2025); Mamba-2, arXiv 2405.21060."""
    linear_conv_kernel_dim: int | None
    """Taps of the causal convolution on what is projected, 0 for none. Needs a linear_attention_type of
    ['gated_delta_net', 'kimi_delta_attention', 'delta_net', 'gated_delta_product', 'delta_product',
    'linear_attention', 'gated_linear_attention', 'lightning_attention', 'mamba2', 'mamba', 'rg_lru',
    'short_conv']. Source: Mamba, arXiv 2312.00752, §3.4; H3, arXiv 2212.14052."""
    linear_attn_config: dict[str, Any]
    """How a recurrence or convolution does what linear_attention_type says, key by key; a key that is left out is
    what the mechanism's own paper does."""
    num_mem_blocks: int | None
    """How many shared blocks take turns over the layers with block_type "shared_block". None: 1. Needs a block_type
    'shared_block'. Source: Glorioso et al. 2024, Zamba, arXiv 2405.16712; Zamba2's name."""
    shared_attention_adapter_rank: int | None
    """Rank of what each of those layers adds to the shared block's queries, keys and values. None: nothing. Needs a
    block_type 'shared_block'. Source: Zamba2, arXiv 2411.15242."""
    shared_mlp_adapter_rank: int | None
    """Rank of what each of those layers adds to the first projection of the shared block's MLP. None: nothing. Needs
    a block_type 'shared_block'. Source: Zamba2, arXiv 2411.15242."""
    position_embedding_type: Literal["rope", "learned", "sinusoidal", "alibi", "relative", "transformer_xl", "none"]
    """The kind of position embedding. "transformer_xl": each layer scores distances with projections of its own;
    "relative": T5's bias by bucket. Source: Su et al. 2021, arXiv 2104.09864 (rope); Press et al. 2022, arXiv
    2108.12409 (alibi); Dai et al. 2019, arXiv 1901.02860, §3.3; Raffel et al. 2020, arXiv 1910.10683, §2.1."""
    max_position_embeddings: int
    """The longest sequence: rows of a learned position table, and the length that rope scaling refers to. Source:
    transformers."""
    rope_parameters: dict[str, Any] | None
    """The dict of transformers with rope_type, rope_theta, partial_rotary_factor, factor ...: one for all layers, or
    one for each layer type, where None means no rotation. Needs a layer with softmax attention that rotates
    (position_embedding_type, no_rope_layers). Source: Su et al. 2021, arXiv 2104.09864; scalings: transformers'
    modeling_rope_utils."""
    rope_interleave: bool | None
    """Channels (2j, 2j + 1) rotate together instead of (j, j + d/2). None: no, with rope. Needs a layer with softmax
    attention that rotates (position_embedding_type, no_rope_layers). Source: Su et al. 2021, arXiv 2104.09864
    (yes; GPT-J); GPT-NeoX, arXiv 2204.06745 (no)."""
    no_rope_layers: list[int] | None
    """One entry for each layer: 1 rotates, 0 does not. A number n: every n-th does not. None: every layer rotates.
    Needs position_embedding_type='rope'. Source: Kazemnejad et al. 2023, arXiv 2305.19466; SmolLM3's name."""
    position_config: dict[str, Any]
    """Details of rotary, learned, sinusoidal and ALiBi positions."""
    relative_attention_num_buckets: int | None
    """Buckets of the relative bias, of which there is one table for all layers. None: 32. Needs
    position_embedding_type='relative'. Source: Raffel et al. 2020, arXiv 1910.10683, §2.1."""
    relative_attention_max_distance: int | None
    """Distance from which on all share the last bucket. None: 128. Needs position_embedding_type='relative'. Source:
    Raffel et al. 2020, arXiv 1910.10683, §2.1."""
    attn_temperature: dict[str, Any]
    """Queries are scaled by their position: by 1 + scale · log(1 + floor((position + offset) / floor_scale))."""
    norm_type: Literal["rms_norm", "layer_norm"]
    """The norm of the residual stream. Source: Zhang & Sennrich 2019, arXiv 1910.07467 (rms_norm); Ba et al. 2016,
    arXiv 1607.06450 (layer_norm)."""
    norm_eps: float | int
    """Added to the mean square, or the variance, so that nothing is divided by zero. Source: transformers."""
    norm_elementwise_affine: bool
    """The norms have a learned scale; without it they have no parameters at all. Source: Ba et al. 2016, arXiv
    1607.06450; without: OLMo, arXiv 2402.00838."""
    norm_bias: bool | None
    """A layer norm has a learned bias. None: as the norm has it by default, layer norm with one, RMS norm without.
    Source: Ba et al. 2016, arXiv 1607.06450."""
    norm_unit_offset: bool
    """The stored weight is an offset from one: y = x̂ · (1 + w). Source: Gemma, arXiv 2403.08295; Nemotron-4, arXiv
    2402.16819."""
    block_type: Literal["pre_norm", "sub_norm", "gated_norm", "gated_attn_norm", "post_norm", "output_norm", "sandwich_norm", "scaled_sandwich_norm", "pre_norm_residual", "parallel", "parallel_two_norms", "mixer_only", "mlp_only", "shared_block", "shortcut", "hyper_connection", "altup", "attention_residual"] | list[Literal["pre_norm", "sub_norm", "gated_norm", "gated_attn_norm", "post_norm", "output_norm", "sandwich_norm", "scaled_sandwich_norm", "pre_norm_residual", "parallel", "parallel_two_norms", "mixer_only", "mlp_only", "shared_block", "shortcut", "hyper_connection", "altup", "attention_residual"]]
    """Residual topology, one name for all layers or one for each; modeling_zoo/block_topologies.py draws them.
    Source: Xiong et al. 2020, arXiv 2002.04745; Wang & Komatsuzaki 2021 (parallel)."""
    residual_multiplier: float | int
    """Factor on the output of each sub-layer before it joins the residual stream. Source: MiniCPM, arXiv 2404.06395;
    Granite 3 (IBM 2024)."""
    residual_factors: dict[str, Any]
    """The α and β of the sums α · residual + β · output, where the residual comes out of a norm."""
    embedding_norm: bool
    """The embeddings are normalised. Source: BLOOM, arXiv 2211.05100, §3.2."""
    final_norm: bool
    """There is a norm before the head. Source: Radford et al. 2019 (GPT-2), §2.3."""
    block_config: dict[str, Any]
    """Details of block types, key by key."""
    hc_mult: int | None
    """How many residual streams there are. None: 4. Needs block_type='hyper_connection'. Source: Zhu et al. 2024,
    arXiv 2409.19606."""
    hc_sinkhorn_iters: int | None
    """Sinkhorn-Knopp steps that make a mixing matrix doubly stochastic. 0: streams do not mix. None: 20. Needs
    block_type='hyper_connection'. Source: Xie et al. 2025, arXiv 2512.24880; Hy4 (Tencent 2026) without mixing."""
    hc_eps: float | int | None
    """Added to weights and sums so that nothing is divided by zero. None: 1e-6. Needs block_type='hyper_connection'.
    Source: DeepSeek-V4's published code."""
    num_kv_shared_layers: int
    """How many of the last layers have no keys and values of their own: they read those of the last layer before
    them of the same type, and cache nothing. Source: Brandon et al. 2024, arXiv 2405.12981; Gemma 3n's name."""
    value_residual: list[float | int] | None
    """Weights of a layer's own values and of those of the first layer, with attention_type 'value_residual'. None:
    two learned numbers for each layer, 0.5 before training. Needs a layer that mixes in the values of another
    (attention_type 'value_residual'). Source: Zhou et al. 2024, arXiv 2410.17897, §3."""
    attention_factors: dict[str, Any]
    """Ranks of the factors that queries, keys and values are made of."""
    hidden_size_per_layer_input: int | None
    """Width of a further embedding of every token for each layer, from a second table. None: no such table. Source:
    Gemma 3n (Google 2025)."""
    vocab_size_per_layer_input: int | None
    """Tokens of that second table. None: vocab_size. Needs hidden_size_per_layer_input. Source: Gemma 3n (Google
    2025)."""
    num_experts: int | None
    """How many routed experts a sparse layer has. Source: Shazeer et al. 2017, arXiv 1701.06538."""
    num_experts_per_tok: int | None
    """How many experts a token goes to. Needs a 'sparse' layer in mlp_layer_types. Source: Shazeer et al. 2017,
    arXiv 1701.06538."""
    moe_intermediate_size: int | None
    """Inner width of a routed expert. None: intermediate_size. Needs a 'sparse' layer in mlp_layer_types. Source:
    DeepSeekMoE, Dai et al. 2024, arXiv 2401.06066, §3.1."""
    moe_latent_size: int | None
    """Width of the space the experts work in, between two projections of the layer's own. None: hidden_size. Needs a
    'sparse' layer in mlp_layer_types. Source: Nemotron 3 (NVIDIA 2025)."""
    zero_expert_num: int | None
    """Zero-computation experts: further outputs of the router that cost nothing. None: none. Needs a 'sparse' layer
    in mlp_layer_types. Source: MoE++, Jin et al. 2024, arXiv 2410.07348; LongCat-Flash, arXiv 2509.01322."""
    zero_expert_type: Literal["identity", "zero"] | None
    """A zero-computation expert returns its input, or zero. None: identity. Needs zero_expert_num. Source: MoE++,
    Jin et al. 2024, arXiv 2410.07348, §3.1; LongCat-Flash, arXiv 2509.01322."""
    expert_bias: bool | None
    """The projections of the experts have biases. gated_mlp and hidden_act say what an expert computes, as for a
    dense layer. Needs a 'sparse' layer in mlp_layer_types. Source: gpt-oss (OpenAI 2025), arXiv 2508.10925."""
    swiglu_limit: float | int | None
    """In routed and shared experts the gate is clamped to at most this limit, the up projection to ± the limit.
    None: neither. Needs gated_mlp=True. Source: gpt-oss (OpenAI 2025), arXiv 2508.10925."""
    scoring_func: Literal["softmax", "sigmoid", "sqrtsoftplus", "sparsemixer"] | None
    """Score of an expert: softmax, sigmoid, sqrt(softplus), or the sampling and thresholds of sparsemixer. None:
    softmax. Needs a 'sparse' layer in mlp_layer_types. Source: Shazeer et al. 2017, arXiv 1701.06538;
    DeepSeek-V3, arXiv 2412.19437 (sigmoid); DeepSeek-V4 (sqrtsoftplus); Liu et al. 2024, arXiv 2409.12136
    (sparsemixer)."""
    norm_topk_prob: bool | None
    """Weights are divided by max(sum + eps, min) over the selected experts. None: yes, unless they sum to one as
    they are or scoring_func is sparsemixer. Needs a 'sparse' layer in mlp_layer_types. Source: Lepikhin et al.
    2020, GShard, arXiv 2006.16668; Mixtral, arXiv 2401.04088."""
    routed_scaling_factor: float | int | None
    """Factor on the weights of the experts, after their division. None: 1. Needs a 'sparse' layer in
    mlp_layer_types. Source: DeepSeek-V2, arXiv 2405.04434."""
    n_group: int | None
    """Experts are selected within the best topk_group of so many groups. None: no groups. Needs a 'sparse' layer in
    mlp_layer_types. Source: DeepSeek-V2, arXiv 2405.04434, §2.2.2."""
    topk_group: int | None
    """How many groups a token's experts come from. Needs n_group. Source: DeepSeek-V2, arXiv 2405.04434, §2.2.2."""
    use_score_correction_bias: bool | None
    """A bias per expert counts in the selection, not in the weights. Needs a 'sparse' layer in mlp_layer_types.
    Source: Wang et al. 2024, arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437."""
    router: dict[str, Any]
    """Details of the router, key by key; scoring_func, norm_topk_prob, routed_scaling_factor, the groups and
    use_score_correction_bias are fields of their own, as transformers spells them."""
    n_shared_experts: int | None
    """How many experts every token visits, computed as one MLP. None: 0, or 1 with a
    shared_expert_intermediate_size. Needs a 'sparse' layer in mlp_layer_types. Source: DeepSeekMoE, Dai et al.
    2024, arXiv 2401.06066, §3.2."""
    shared_expert_intermediate_size: int | None
    """Inner width of that MLP. None: n_shared_experts · moe_intermediate_size. Needs a 'sparse' layer in
    mlp_layer_types. Source: Qwen1.5-MoE (Qwen 2024)."""
    shared_expert_gate: bool | None
    """A sigmoid gate, one number per token, on the output of the shared experts. Needs n_shared_experts. Source:
    Qwen1.5-MoE (Qwen 2024)."""
    shared_expert_combination_strategy: Literal["sum", "average", "normed_sum"] | None
    """The output of the shared experts is added to that of the routed ones, averaged with it, or added and normed
    (normed_sum). None: sum. Needs n_shared_experts. Source: DeepSeekMoE, Dai et al. 2024, arXiv 2401.06066 (sum);
    Cohere (average); A.X K1 (normed_sum)."""
    gated_mlp: bool
    """An MLP is down(act(gate x) · up x) instead of down(act(up x)). Needs a layer with an MLP, which
    block_type='mixer_only' lacks. Source: Shazeer 2020, arXiv 2002.05202."""
    hidden_act: Literal["elu", "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu"]
    """Activation of an MLP; "linear" with a gate is the bilinear unit, "sigmoid" the first gated one. Needs a layer
    with an MLP, which block_type='mixer_only' lacks. Source: transformers' ACT2FN; Shazeer 2020, arXiv
    2002.05202."""
    intermediate_size: int | None
    """Inner width of an MLP. None: 4 · hidden_size, or with a gate 8/3 · hidden_size rounded up to 64, which has as
    many parameters. Source: Shazeer 2020, arXiv 2002.05202, §2."""
    mlp_bias: bool
    """The projections of an MLP have biases. Needs a layer with a dense MLP, shared experts or moe_latent_size.
    Source: transformers."""
    swiglu_config: dict[str, Any]
    """Details of gated MLPs, key by key; swiglu_limit is a field of its own, as transformers spells it."""
    mlp_layer_types: list[Literal["dense", "sparse"]] | None
    """For each layer, a dense MLP or sparse experts. A number n: every n-th is sparse. None: sparse with
    num_experts, else dense. Source: transformers."""
    num_mtp_layers: int
    """How many layers behind the model predict one further token each. Source: DeepSeek-V3, arXiv 2412.19437, §2.2;
    transformers' name."""
    mtp: dict[str, Any]
    """How the layers that predict further tokens are built and trained."""
    mup_multipliers: dict[str, Any]
    """Constant factors on what goes into and comes out of the projections of a layer (muP)."""
    precision: dict[str, Any]
    """Where this implementation rounds, key by key; a key that is left out is what the concept has by default."""
    output_router_logits: bool | None
    """Whether the balance loss and the z-loss of routers are added to the loss. True: always, and router logits are
    returned; False: never, whatever the coefficients; None: in training alone, and no logits are returned. Needs
    a 'sparse' layer in mlp_layer_types. Source: transformers."""
    router_aux_loss_coef: float | int | None
    """Factor on the loss that balances the experts. None: 0. Needs a 'sparse' layer in mlp_layer_types. Source:
    Switch Transformer, Fedus et al. 2021, arXiv 2101.03961, §2.2."""
    router_z_loss_coef: float | int | None
    """Factor on the mean square of log Z of the router. None: 0. Needs a 'sparse' layer in mlp_layer_types. Source:
    ST-MoE, Zoph et al. 2022, arXiv 2202.08906, eq. 5."""
    output_z_loss_coef: float | int
    """Factor on log² Z of the vocabulary's softmax, which keeps Z near one; 1e-4 in PaLM. Source: PaLM, Chowdhery et
    al. 2022, arXiv 2204.02311, §5."""
    loss_chunk_size: int | None
    """Training computes the loss over so many target tokens at a time and returns no logits. None: over all at once.
    Source: own to zoo."""
    initializer: dict[str, Any]
    """What weights are before the first step, beside initializer_range."""
    def __init__(
        self,
        *,
        vocab_size: int = 32000,
        hidden_size: int = 4096,
        num_hidden_layers: int = 32,
        tie_word_embeddings: bool = False,
        embedding_size: int | None = None,
        embedding_multiplier: float | int = 1.0,
        logits_scaling: float | int = 1.0,
        final_logit_softcapping: float | int | None = None,
        lm_head_bias: bool = False,
        suppressed_token_ids: list[int] | None = None,
        embedding_dropout: float | int = 0.0,
        residual_dropout: float | int = 0.0,
        initializer_range: float | int = 0.02,
        use_cache: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | list[int] | None = None,
        eos_token_id: int | list[int] | None = None,
        source_config: dict[str, Any] | None = None,
        source_extras: dict[str, Any] | None = None,
        surgery: dict[str, Any] | None = None,
        attention_type: Literal["grouped_query", "differential", "forgetting", "stick_breaking", "path", "value_residual", "multi_matrix_factorization", "tensor_product", "grouped_tied", "latent"] | list[Literal["grouped_query", "differential", "forgetting", "stick_breaking", "path", "value_residual", "multi_matrix_factorization", "tensor_product", "grouped_tied", "latent"] | None] | str = 'grouped_query',
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        v_head_dim: int | None = None,
        attention_value_scale: float | int | None = None,
        value_norm: bool = False,
        attention_k_eq_v: bool = False,
        layer_types: list[Literal["full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "compressed_sparse_attention", "heavily_compressed_attention", "linear_attention", "conv", "hybrid", "hybrid_sliding", "moe"]] | None | str | int = None,
        sliding_window: int | None = None,
        attention_chunk_size: int | None = None,
        sparse_attention_pattern: Literal["none", "strided", "fixed", "banded"] | list[Literal["none", "strided", "fixed", "banded"]] | None | str = None,
        sparse_attention_stride: int | None = None,
        use_bidirectional_attention: bool = False,
        attention_bias: bool = False,
        attention_out_bias: bool | None = None,
        attention_multiplier: float | int | None = None,
        scale_attn_by_inverse_layer_idx: bool = False,
        attn_logit_softcapping: float | int | None = None,
        clip_qkv: float | int | None = None,
        clip_qkv_position: Literal["before_norm", "after_norm"] | None = None,
        qk_norm: Literal["rms_norm", "layer_norm"] | None = None,
        qk_norm_config: QkNormConfig | None = None,
        attention_sinks: Literal["all", "full_attention", "sliding_attention", "chunked_attention"] | None = None,
        attn_output_gate: Literal["query", "elementwise", "headwise", "elementwise_softplus", "headwise_softplus"] | None = None,
        attention_dropout: float | int = 0.0,
        kv_lora_rank: int | None = None,
        q_lora_rank: int | None = None,
        qk_nope_head_dim: int | None = None,
        qk_rope_head_dim: int | None = None,
        mla_config: MlaConfig | None = None,
        index_topk: int | None = None,
        index_n_heads: int | None = None,
        index_head_dim: int | None = None,
        indexer_types: list[Literal["full", "shared", "none"]] | None | str = None,
        indexer_loss_coef: float | int | None = None,
        indexer: Indexer | None = None,
        linear_attention_type: Literal["gated_delta_net", "kimi_delta_attention", "delta_net", "gated_delta_product", "delta_product", "linear_attention", "gated_linear_attention", "lightning_attention", "mamba2", "mamba", "rg_lru", "short_conv"] | list[Literal["gated_delta_net", "kimi_delta_attention", "delta_net", "gated_delta_product", "delta_product", "linear_attention", "gated_linear_attention", "lightning_attention", "mamba2", "mamba", "rg_lru", "short_conv"] | None] | None | str = None,
        linear_num_key_heads: int | None = None,
        linear_num_value_heads: int | None = None,
        linear_key_head_dim: int | None = None,
        linear_value_head_dim: int | None = None,
        linear_conv_kernel_dim: int | None = None,
        linear_attn_config: LinearAttnConfig | None = None,
        num_mem_blocks: int | None = None,
        shared_attention_adapter_rank: int | None = None,
        shared_mlp_adapter_rank: int | None = None,
        position_embedding_type: Literal["rope", "learned", "sinusoidal", "alibi", "relative", "transformer_xl", "none"] = 'rope',
        max_position_embeddings: int = 4096,
        rope_parameters: dict[str, Any] | None = None,
        rope_interleave: bool | None = None,
        no_rope_layers: list[int] | None | str | int = None,
        position_config: PositionConfig | None = None,
        relative_attention_num_buckets: int | None = None,
        relative_attention_max_distance: int | None = None,
        attn_temperature: AttnTemperature | None = None,
        norm_type: Literal["rms_norm", "layer_norm"] = 'rms_norm',
        norm_eps: float | int = 1e-06,
        norm_elementwise_affine: bool = True,
        norm_bias: bool | None = None,
        norm_unit_offset: bool = False,
        block_type: Literal["pre_norm", "sub_norm", "gated_norm", "gated_attn_norm", "post_norm", "output_norm", "sandwich_norm", "scaled_sandwich_norm", "pre_norm_residual", "parallel", "parallel_two_norms", "mixer_only", "mlp_only", "shared_block", "shortcut", "hyper_connection", "altup", "attention_residual"] | list[Literal["pre_norm", "sub_norm", "gated_norm", "gated_attn_norm", "post_norm", "output_norm", "sandwich_norm", "scaled_sandwich_norm", "pre_norm_residual", "parallel", "parallel_two_norms", "mixer_only", "mlp_only", "shared_block", "shortcut", "hyper_connection", "altup", "attention_residual"]] | str = 'pre_norm',
        residual_multiplier: float | int = 1.0,
        residual_factors: ResidualFactors | None = None,
        embedding_norm: bool = False,
        final_norm: bool = True,
        block_config: BlockConfig | None = None,
        hc_mult: int | None = None,
        hc_sinkhorn_iters: int | None = None,
        hc_eps: float | int | None = None,
        num_kv_shared_layers: int = 0,
        value_residual: list[float | int] | None = None,
        attention_factors: AttentionFactors | None = None,
        hidden_size_per_layer_input: int | None = None,
        vocab_size_per_layer_input: int | None = None,
        num_experts: int | None = None,
        num_experts_per_tok: int | None = None,
        moe_intermediate_size: int | None = None,
        moe_latent_size: int | None = None,
        zero_expert_num: int | None = None,
        zero_expert_type: Literal["identity", "zero"] | None = None,
        expert_bias: bool | None = None,
        swiglu_limit: float | int | None = None,
        scoring_func: Literal["softmax", "sigmoid", "sqrtsoftplus", "sparsemixer"] | None = None,
        norm_topk_prob: bool | None = None,
        routed_scaling_factor: float | int | None = None,
        n_group: int | None = None,
        topk_group: int | None = None,
        use_score_correction_bias: bool | None = None,
        router: Router | None = None,
        n_shared_experts: int | None = None,
        shared_expert_intermediate_size: int | None = None,
        shared_expert_gate: bool | None = None,
        shared_expert_combination_strategy: Literal["sum", "average", "normed_sum"] | None = None,
        gated_mlp: bool = True,
        hidden_act: Literal["elu", "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu"] = 'silu',
        intermediate_size: int | None = None,
        mlp_bias: bool = False,
        swiglu_config: SwigluConfig | None = None,
        mlp_layer_types: list[Literal["dense", "sparse"]] | None | str | int = None,
        num_mtp_layers: int = 0,
        mtp: Mtp | None = None,
        mup_multipliers: MupMultipliers | None = None,
        precision: Precision | None = None,
        output_router_logits: bool | None = None,
        router_aux_loss_coef: float | int | None = None,
        router_z_loss_coef: float | int | None = None,
        output_z_loss_coef: float | int = 0.0,
        loss_chunk_size: int | None = None,
        initializer: Initializer | None = None,
        **kwargs: Any,
    ) -> None:
        """Args:
            vocab_size: Rows of the token table: how many tokens there are.
            hidden_size: Width of the residual stream, which every layer reads and adds to.
            num_hidden_layers: How many layers the model has.
            tie_word_embeddings: The matrix of the head is the token table.
            embedding_size: Width of the token table and of the head where it is not hidden_size, with a projection at each end. None: hidden_size.
            embedding_multiplier: Factor on the embeddings. precision.embedding_multiplier_in_weight_dtype says where the product is rounded.
            logits_scaling: Logits are divided by this number, before they are capped.
            final_logit_softcapping: Logits become cap · tanh(logit / cap). None: no cap.
            lm_head_bias: The head has a learned bias on the logits.
            suppressed_token_ids: Tokens that are never produced: their logits become the smallest number of the dtype.
            embedding_dropout: Rate of dropout on the embeddings, in training.
            residual_dropout: Rate of dropout on the output of each sub-layer before it joins the residual stream, in training.
            initializer_range: Standard deviation of a new matrix, where initializer.type does not say otherwise.
            use_cache: Whether a forward returns its cache.
            pad_token_id: The token that pads the shorter rows of a batch.
            bos_token_id: The token that begins a text, or several.
            eos_token_id: The token that ends a text, or several.
            source_config: The config.json this model was converted from, unchanged, so that converting back loses nothing.
            source_extras: What the source held beside this model (a vision tower, layers that predict further tokens): how many `tensors` of which names, how weights kept as they were stored are `quantized`, and the `repository` and `revision` they came from.
            surgery: How this model was made from another by `zoo surgery`, `zoo heal` and `zoo merge`: the `source`, and the `operations` in their order with values, exactness, calibration, healing and what was measured.
            attention_type: The mechanism of softmax attention, one name for all layers or one for each (None for a layer without).
            num_attention_heads: Heads of the queries.
            num_key_value_heads: Heads of keys and values, a divisor of num_attention_heads; 1 is multi-query attention. None: as many as num_attention_heads, 1 with attention_type 'multi_matrix_factorization' alone.
            head_dim: Channels of a head. None: hidden_size / num_attention_heads.
            v_head_dim: Channels of a head's value, hence of its output; latent attention always has it. None: head_dim.
            attention_value_scale: Factor on the values before they are cached. None: 1.
            value_norm: Each head's values pass an RMS norm without a weight before they are cached.
            attention_k_eq_v: The values are the projected keys, before those are normalised and rotated.
            layer_types: The type of each layer by transformers' names: what a token attends to, hence the mask and the cache. A number n: every n-th is full_attention, the others slide, or are what linear_attention_type or attention_chunk_size is for. None: sliding_attention with a sliding_window, else full_attention.
            sliding_window: A token sees itself and window - 1 before it, in the layers that slide. Without layer_types it is one for every layer.
            attention_chunk_size: A token sees what is before it in its own chunk of so many tokens, in chunked_attention layers.
            sparse_attention_pattern: Factorised pattern over a full_attention layer, one name for all of them or one for each layer.
            sparse_attention_stride: Stride of the factorised patterns, in tokens; the width of a band.
            use_bidirectional_attention: Every token sees every other, those after it too: an encoder made of a decoder.
            attention_bias: The projections of queries, keys and values have biases.
            attention_out_bias: The output projection has a bias. None: as attention_bias says.
            attention_multiplier: Scale of the scores. None: width of a key ** -0.5.
            scale_attn_by_inverse_layer_idx: Scores are divided by the layer's number, counted from one.
            attn_logit_softcapping: Scores become cap · tanh(score / cap). None: no cap.
            clip_qkv: Projected queries, keys and values are clamped to ± this number. None: no clamp.
            clip_qkv_position: Queries and keys are clamped before or after their norm. None: before_norm.
            qk_norm: The norm on queries and keys. None: no norm.
            qk_norm_config: How the norm on queries and keys is done, with a qk_norm.
            attention_sinks: One learned logit per head takes part in the softmax and has no value, in the layers of this type.
            attn_output_gate: A sigmoid gate on the attention output before o_proj: per channel from a q_proj that is twice as wide (query), or from a g_proj of its own, per channel (elementwise) or per head (headwise); the words with softplus have it in place of the sigmoid. None: no gate.
            attention_dropout: Rate of dropout on the weights of attention, in training.
            kv_lora_rank: Rank of the latent that keys and values are made of, which is what the cache holds. None: 4 · head_dim.
            q_lora_rank: Rank of the latent that queries are made of. None: one full projection.
            qk_nope_head_dim: Channels of a head's query and key that do not rotate. None: head_dim, or hidden_size / num_attention_heads.
            qk_rope_head_dim: Channels of a head's query that rotate, and of the rotated key that all heads share. None: half of head_dim, 0 without rope.
            mla_config: Details of latent attention, and of other projections through a rank, key by key.
            index_topk: How many keys the indexer chooses for each query. None: 2048.
            index_n_heads: Heads of the indexer. None: 64.
            index_head_dim: Channels of a head of the indexer. None: 128.
            indexer_types: For each layer: "full" has an indexer, "shared" takes what the last one before it chose, "none" is every other layer. None: "full" in every indexed layer.
            indexer_loss_coef: Factor on KL(attention ‖ index scores), per token and layer, in the loss. None: 0.
            indexer: Details of the indexer, key by key.
            linear_attention_type: The recurrence or convolution, one name for all layers that have one or one for each layer.
            linear_num_key_heads: Heads of queries and keys; groups of a state space model; unused in a gated unit.
            linear_num_value_heads: Heads of values, a multiple of those of keys; heads of a state space model; blocks of a gated unit.
            linear_key_head_dim: Channels of a head of queries and keys; states of a state space model.
            linear_value_head_dim: Channels of a head of values; of a head of a state space model; of a block of a gated unit.
            linear_conv_kernel_dim: Taps of the causal convolution on what is projected, 0 for none.
            linear_attn_config: How a recurrence or convolution does what linear_attention_type says, key by key; a key that is left out is what the mechanism's own paper does.
            num_mem_blocks: How many shared blocks take turns over the layers with block_type "shared_block". None: 1.
            shared_attention_adapter_rank: Rank of what each of those layers adds to the shared block's queries, keys and values. None: nothing.
            shared_mlp_adapter_rank: Rank of what each of those layers adds to the first projection of the shared block's MLP. None: nothing.
            position_embedding_type: The kind of position embedding. "transformer_xl": each layer scores distances with projections of its own; "relative": T5's bias by bucket.
            max_position_embeddings: The longest sequence: rows of a learned position table, and the length that rope scaling refers to.
            rope_parameters: The dict of transformers with rope_type, rope_theta, partial_rotary_factor, factor ...: one for all layers, or one for each layer type, where None means no rotation.
            rope_interleave: Channels (2j, 2j + 1) rotate together instead of (j, j + d/2). None: no, with rope.
            no_rope_layers: One entry for each layer: 1 rotates, 0 does not. A number n: every n-th does not. None: every layer rotates.
            position_config: Details of rotary, learned, sinusoidal and ALiBi positions.
            relative_attention_num_buckets: Buckets of the relative bias, of which there is one table for all layers. None: 32.
            relative_attention_max_distance: Distance from which on all share the last bucket. None: 128.
            attn_temperature: Queries are scaled by their position: by 1 + scale · log(1 + floor((position + offset) / floor_scale)).
            norm_type: The norm of the residual stream.
            norm_eps: Added to the mean square, or the variance, so that nothing is divided by zero.
            norm_elementwise_affine: The norms have a learned scale; without it they have no parameters at all.
            norm_bias: A layer norm has a learned bias. None: as the norm has it by default, layer norm with one, RMS norm without.
            norm_unit_offset: The stored weight is an offset from one: y = x̂ · (1 + w).
            block_type: Residual topology, one name for all layers or one for each; modeling_zoo/block_topologies.py draws them.
            residual_multiplier: Factor on the output of each sub-layer before it joins the residual stream.
            residual_factors: The α and β of the sums α · residual + β · output, where the residual comes out of a norm.
            embedding_norm: The embeddings are normalised.
            final_norm: There is a norm before the head.
            block_config: Details of block types, key by key.
            hc_mult: How many residual streams there are. None: 4.
            hc_sinkhorn_iters: Sinkhorn-Knopp steps that make a mixing matrix doubly stochastic. 0: streams do not mix. None: 20.
            hc_eps: Added to weights and sums so that nothing is divided by zero. None: 1e-6.
            num_kv_shared_layers: How many of the last layers have no keys and values of their own: they read those of the last layer before them of the same type, and cache nothing.
            value_residual: Weights of a layer's own values and of those of the first layer, with attention_type 'value_residual'. None: two learned numbers for each layer, 0.5 before training.
            attention_factors: Ranks of the factors that queries, keys and values are made of.
            hidden_size_per_layer_input: Width of a further embedding of every token for each layer, from a second table. None: no such table.
            vocab_size_per_layer_input: Tokens of that second table. None: vocab_size.
            num_experts: How many routed experts a sparse layer has.
            num_experts_per_tok: How many experts a token goes to.
            moe_intermediate_size: Inner width of a routed expert. None: intermediate_size.
            moe_latent_size: Width of the space the experts work in, between two projections of the layer's own. None: hidden_size.
            zero_expert_num: Zero-computation experts: further outputs of the router that cost nothing. None: none.
            zero_expert_type: A zero-computation expert returns its input, or zero. None: identity.
            expert_bias: The projections of the experts have biases. gated_mlp and hidden_act say what an expert computes, as for a dense layer.
            swiglu_limit: In routed and shared experts the gate is clamped to at most this limit, the up projection to ± the limit. None: neither.
            scoring_func: Score of an expert: softmax, sigmoid, sqrt(softplus), or the sampling and thresholds of sparsemixer. None: softmax.
            norm_topk_prob: Weights are divided by max(sum + eps, min) over the selected experts. None: yes, unless they sum to one as they are or scoring_func is sparsemixer.
            routed_scaling_factor: Factor on the weights of the experts, after their division. None: 1.
            n_group: Experts are selected within the best topk_group of so many groups. None: no groups.
            topk_group: How many groups a token's experts come from.
            use_score_correction_bias: A bias per expert counts in the selection, not in the weights.
            router: Details of the router, key by key; scoring_func, norm_topk_prob, routed_scaling_factor, the groups and use_score_correction_bias are fields of their own, as transformers spells them.
            n_shared_experts: How many experts every token visits, computed as one MLP. None: 0, or 1 with a shared_expert_intermediate_size.
            shared_expert_intermediate_size: Inner width of that MLP. None: n_shared_experts · moe_intermediate_size.
            shared_expert_gate: A sigmoid gate, one number per token, on the output of the shared experts.
            shared_expert_combination_strategy: The output of the shared experts is added to that of the routed ones, averaged with it, or added and normed (normed_sum). None: sum.
            gated_mlp: An MLP is down(act(gate x) · up x) instead of down(act(up x)).
            hidden_act: Activation of an MLP; "linear" with a gate is the bilinear unit, "sigmoid" the first gated one.
            intermediate_size: Inner width of an MLP. None: 4 · hidden_size, or with a gate 8/3 · hidden_size rounded up to 64, which has as many parameters.
            mlp_bias: The projections of an MLP have biases.
            swiglu_config: Details of gated MLPs, key by key; swiglu_limit is a field of its own, as transformers spells it.
            mlp_layer_types: For each layer, a dense MLP or sparse experts. A number n: every n-th is sparse. None: sparse with num_experts, else dense.
            num_mtp_layers: How many layers behind the model predict one further token each.
            mtp: How the layers that predict further tokens are built and trained.
            mup_multipliers: Constant factors on what goes into and comes out of the projections of a layer (muP).
            precision: Where this implementation rounds, key by key; a key that is left out is what the concept has by default.
            output_router_logits: Whether the balance loss and the z-loss of routers are added to the loss. True: always, and router logits are returned; False: never, whatever the coefficients; None: in training alone, and no logits are returned.
            router_aux_loss_coef: Factor on the loss that balances the experts. None: 0.
            router_z_loss_coef: Factor on the mean square of log Z of the router. None: 0.
            output_z_loss_coef: Factor on log² Z of the vocabulary's softmax, which keeps Z near one; 1e-4 in PaLM.
            loss_chunk_size: Training computes the loss over so many target tokens at a time and returns no logits. None: over all at once.
            initializer: What weights are before the first step, beside initializer_range."""
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> 'ZooConfig | tuple[ZooConfig, dict]':
        """As transformers', but a field named beside the file takes part in derivation and checks like one in it.

        A key of the file that is no field is kept as an attribute with a warning, and refused if it looks misspelt.
        Fewer layers than the file names are its first ones."""
    def match_num_hidden_layers(self) -> None:
        """Where num_hidden_layers was lowered on an existing config, shortens its per-layer lists to match."""
    @classmethod
    def preset(cls, name: str, tiny: bool=False, **fields: Any) -> 'ZooConfig':
        """A published architecture by name (`zoo presets` lists them), `fields` on top; raises ValueError for no such
        name.

        `tiny` keeps its concepts and takes sizes that run anywhere."""
    def standardize_rope_params(self) -> None:
        """transformers' own. An older one leaves a theta beside tables by layer type and asks for one of every type."""
    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json and `repr` show: what differs and cannot be derived (config_file.py), and zoo's version."""
    def advice(self) -> list[dict[str, Any]]:
        """What published models agree on beside this config, a note for each thing (`zoo advise`); raises ValueError
        where only a model folder's copy of this file is there."""
    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool=False, **kwargs: Any) -> None:
        """Writes config.json and, from the installed package, the code that goes with it and the complete auto_map.

        The hook is here because every way to save a model comes through it after an upload has taken its time stamps.
        A copy that was itself loaded as remote code leaves the copying of its files to transformers."""
    def write_card(self, folder: str | os.PathLike) -> None:
        """Puts the card of the installed package where transformers has left an empty one before an upload."""
    @property
    def output_width(self) -> int:
        """Width of the token table, of the last hidden states and of the head's input."""
    @property
    def logit_scale(self) -> float:
        """What logits are multiplied by, where serving engines that make them from the head look for it."""
    def even_head_dim(self) -> int:
        """hidden_size / num_attention_heads; raises ValueError where that leaves a rest."""
    @property
    def value_width(self) -> int:
        """Channels of a head's value, hence of its output."""
    def attention_scaling(self, layer_idx: int) -> float:
        """The factor on the scores of layer `layer_idx`."""
    def has_qk_norm(self, layer_idx: int) -> bool:
        """Whether layer `layer_idx` normalises queries and keys."""
    def has_attention_sinks(self, layer_idx: int) -> bool:
        """Whether layer `layer_idx` has learned sink logits."""
    def sparse_pattern_of(self, layer_idx: int) -> str:
        """The factorised pattern of layer `layer_idx`, "none" for a plain one."""
    @property
    def rope_head_width(self) -> int:
        """Channels of one head of the rotated key of latent attention."""
    @property
    def qk_head_dim(self) -> int | None:
        """Channels of a query or key where they differ from head_dim, else None: the name under which transformers asks
        whether a cache can be laid out from head_dim alone."""
    def indexer_of(self, layer_idx: int) -> int:
        """The layer whose indexer chooses for layer `layer_idx`: itself, or the last "full" one before it."""
    def mscale_factor(self, layer_idx: int) -> float:
        """The factor on the scores that comes from the scaling of the rotation of layer `layer_idx`."""
    @property
    def attentions_with_indexer(self) -> set[str | None]:
        """The distinct mechanisms of the indexed layers."""
    @property
    def compress_rates(self) -> dict[str, int]:
        """How many tokens become one entry, by the type of the layer, as transformers' caches ask for it."""
    def recurrent_layers(self) -> list[int]:
        """Indices of the layers with a recurrence or a short convolution."""
    def linear_mechanisms(self) -> list[str]:
        """The distinct mechanisms in use, in order of their first layer."""
    def linear_settings(self, layer_idx: int) -> SimpleNamespace:
        """What the mixer of layer `layer_idx` reads: all that its mechanism reads, by `setting_name`."""
    @property
    def shared_block_layers(self) -> list[int]:
        """The layers that have a shared block."""
    @property
    def rope_tables(self) -> dict[str, dict]:
        """Rotation name → parameters: layer types for nested `rope_parameters`, else the one name "default"."""
    def turns(self, layer_idx: int) -> bool:
        """Whether `no_rope_layers` lets layer `layer_idx` rotate."""
    def rope_table_of(self, layer_idx: int) -> str | None:
        """The name of the rotation layer `layer_idx` uses, None where it does not rotate."""
    def rope_changes_between(self, seen: int, length: int) -> bool:
        """Whether keys cached at a length of `seen` > 0 are rotated otherwise at `length`: LongRoPE's long factors."""
    def has_attention_temperature(self, layer_idx: int) -> bool:
        """Whether the queries of layer `layer_idx` are scaled by position."""
    def residual_factors_of(self, layer_idx: int) -> tuple[tuple, tuple]:
        """(α, β) of the mixer's sum and of the MLP's in layer `layer_idx`."""
    @property
    def block_types(self) -> list[str]:
        """The residual topology of each layer."""
    @property
    def first_sharing_layer(self) -> int:
        """The layer from which on all share; of all that layer_types names, however many of them run."""
    def shares_key_values(self, layer_idx: int) -> bool:
        """Whether layer `layer_idx` reads the keys and values of another."""
    def kv_source_of(self, layer_idx: int) -> int | None:
        """The layer whose keys and values layer `layer_idx` reads: itself, or the last of its type before the sharing
        ones, None without one."""
    @property
    def kv_sharing_modes(self) -> list[str | None]:
        """transformers' names for it, by which its caches leave a layer out: "store", "reuse" or None."""
    @property
    def value_source(self) -> int | None:
        """The first layer with value residual, whose values the later ones mix in; None without one."""
    def mixes_values(self, layer_idx: int) -> bool:
        """Whether layer `layer_idx` mixes in the values of the first such layer."""
    def has_factors(self, layer_idx: int, of_keys: bool=False) -> bool:
        """Whether layer `layer_idx` makes its queries, or also keys and values, of factors."""
    def tied_rope_width(self, layer_idx: int) -> int:
        """Channels of a head that rotate in layer `layer_idx`, which grouped-tied attention keeps apart."""
    @property
    def num_router_outputs(self) -> int:
        """Ids the router chooses among: the experts and the zero experts after them."""
    def hashes_tokens(self, layer_idx: int) -> bool:
        """Whether a token's id chooses its experts in layer `layer_idx`."""
    def has_dense_mlp(self, index: int) -> bool:
        """Whether layer `index` has a dense MLP, be it beside experts."""
    def mtp_layer_config(self) -> PreTrainedConfig:
        """The config of one prediction layer, as of a model that has no other layer."""
    def warn_of_training(self) -> None:
        """Says what would go wrong in training without a word; a converted model learns by the losses of its own."""
    def outside_layers(self) -> PreTrainedConfig:
        """The config as the parts of a model outside its layers read it: nothing differs."""
    @property
    def mixer_types(self) -> list[str | None]:
        """The mechanism of each layer: a name of the mixer registry, None for a layer that has no mixer."""
    @property
    def attention_types(self) -> list[str | None]:
        """The mechanism of softmax attention, for each layer."""
    @property
    def recurrent_mixers(self) -> list[str | None]:
        """The recurrence or convolution of each layer, None for a layer without: its `linear_attn`."""
    @property
    def attention_mixers(self) -> list[str | None]:
        """The attention of each layer, None for a layer without one of its own: its `self_attn`."""
    @property
    def softmax_layers(self) -> list[int]:
        """Indices of the layers with softmax attention, alone or beside a recurrence."""
    @property
    def attentions(self) -> set[str]:
        """The distinct mechanisms of softmax attention."""
    def rotary_width(self, layer_idx: int) -> int:
        """Channels of a head that rotate in layer `layer_idx`, before partial_rotary_factor."""
    def key_width(self, layer_idx: int) -> int:
        """Channels of a query or key of layer `layer_idx`."""
    @property
    def base_model_tp_plan(self) -> dict[str, str]:
        """Tensor parallel (Shoeybi et al. 2019, Megatron-LM, §3)."""
    @base_model_tp_plan.setter
    def base_model_tp_plan(self, plan: dict[str, str]) -> None:
        ...
    @property
    def base_model_ep_plan(self) -> dict[str, str] | None:
        """Expert parallel (Lepikhin et al. 2020, GShard): every rank holds some experts whole."""
