"""How a model is split over devices: transformers' tensor- and expert-parallel plans, derived from the flags.

A plan names modules by pattern, `*` for a layer's number, and says how each is split. Only what the instance has is
named. What stands in no plan is the same on every rank.
"""

from types import SimpleNamespace

from transformers import PreTrainedConfig

from .vocabulary import LEARNED_ACTIVATIONS, POSITION_BIASES

COLWISE, ROWWISE = "colwise", "rowwise"
# The same on each rank, which uses it for its own part: what it learns is the sum over ranks.
SUMMED = "replicated_with_grad_allreduce"
# The same weights on each rank, but activations whole: for what sees all heads.
GATHERED, FROM_WHOLE = "colwise_gather_output", "rowwise_rep"
PREFIX, RECURRENT = "layers.*.self_attn.", "layers.*.linear_attn."
PER_LAYER = "per_layer_embeddings."
# Blocks without an MLP that can be split: that other layers use as well, or with a norm over all its inner channels.
WITHOUT_SPLIT_MLP = ("mixer_only", "shared_block", "sub_norm")


def grouped_query_plan(config: PreTrainedConfig) -> dict[str, str]:
    """Query heads and the key-value heads they read go together."""
    # A norm over all heads, or with a weight per head, sees whole projections: gather them before, split after.
    whole = config.qk_norm is not None and (
        config.qk_norm_config["scope"] == "full" or config.qk_norm_config["weight"] == "per_head"
    )
    projection, output = (GATHERED, FROM_WHOLE) if whole else (COLWISE, ROWWISE)
    plan = {f"{PREFIX}{name}_proj": projection for name in "qkv"} | {f"{PREFIX}o_proj": output}
    shared = {"shared": "qk", "keys": "k"}.get(config.qk_norm_config["weight"] or "", "")
    if config.qk_norm is not None and not whole:
        plan |= {f"{PREFIX}{name}_norm": SUMMED for name in shared}
    return plan | gate_and_sinks_plan(config, whole)


def transformer_xl_plan(config: PreTrainedConfig) -> dict[str, str]:
    """As grouped queries; each head's projection of the distances goes with it."""
    plan = grouped_query_plan(config)
    return plan | {f"{PREFIX}r_proj": plan[f"{PREFIX}q_proj"]}


def latent_plan(config: PreTrainedConfig) -> dict[str, str]:
    """Every rank has the whole latent, and the maps of its own heads out of it; an indexer is whole on every rank."""
    query = "q_proj" if config.q_lora_rank is None else "q_b_proj"
    plan = {f"{PREFIX}{query}": COLWISE, f"{PREFIX}kv_b_proj": COLWISE, f"{PREFIX}o_proj": ROWWISE}
    if config.qk_rope_head_dim:
        # The heads of all ranks read its rope key, so its gradient is the sum over ranks.
        plan[f"{PREFIX}kv_a_proj_with_mqa"] = "mla_kv_a_proj"
        plan |= {f"{PREFIX}k_rope_layernorm": SUMMED} if config.mla_config["rope_key_norm"] else {}
    return plan | gate_and_sinks_plan(config)


def gate_and_sinks_plan(config: PreTrainedConfig, whole: bool = False) -> dict[str, str]:
    """What stands beside the heads, one row or number for each of them."""
    plan = {}
    if config.attn_output_gate not in (None, "query"):
        plan[f"{PREFIX}output_gate.g_proj"] = GATHERED if whole else COLWISE
    if config.attention_sinks is not None and not whole:
        plan |= {f"{PREFIX}sinks": COLWISE, "layers.*.self_attn": "local_params"}
    return plan


def linear_heads_plan(config: PreTrainedConfig, settings: SimpleNamespace) -> dict[str, str]:
    """Heads of keys and the heads of values that read them go together; what stands beside them (convolution, decay,
    norm, maps through a rank) is whole, and each rank uses its part of it."""
    plan = {f"{RECURRENT}{name}_proj": COLWISE for name in "qkv"} | {f"{RECURRENT}o_proj": ROWWISE}
    if settings.allow_neg_eigval is not None:
        # A delta rule, which has a strength of each write.
        plan[f"{RECURRENT}b_proj"] = COLWISE
    if settings.decay not in (None, "constant") and settings.decay_rank is None:
        plan[f"{RECURRENT}a_proj"] = COLWISE
    whole = settings.output_norm == "full"
    if settings.output_gate != "none" and settings.gate_rank is None:
        plan[f"{RECURRENT}g_proj"] = GATHERED if whole else COLWISE
    return plan | ({f"{RECURRENT}o_proj": FROM_WHOLE} if whole else {})


def gated_unit_plan(config: PreTrainedConfig, settings: SimpleNamespace) -> dict[str, str]:
    """Blocks of channels split over ranks."""
    names = ("in_proj", "g_proj") if settings.output_gate != "none" else ("in_proj",)
    if settings.output_norm == "full":
        return fused_plan(config, settings) | ({f"{RECURRENT}g_proj": GATHERED} if "g_proj" in names else {})
    return {f"{RECURRENT}{name}": COLWISE for name in names} | {f"{RECURRENT}o_proj": ROWWISE}


def fused_plan(config: PreTrainedConfig, settings: SimpleNamespace) -> dict[str, str]:
    """Several sections in one projection: its rows are split and its outputs gathered, every rank computes the whole
    recurrence."""
    return {f"{RECURRENT}in_proj": GATHERED, f"{RECURRENT}o_proj": FROM_WHOLE}


# By mechanism; one that is not here is whole on every rank.
RECURRENT_PLANS = {
    **dict.fromkeys(("gated_delta_net", "kimi_delta_attention", "delta_net"), linear_heads_plan),
    **dict.fromkeys(("linear_attention", "gated_linear_attention", "lightning_attention"), linear_heads_plan),
    "rg_lru": gated_unit_plan,
    **dict.fromkeys(("mamba2", "mamba", "short_conv"), fused_plan),
}


def recurrent_plan(config: PreTrainedConfig) -> dict[str, str]:
    """The recurrences of all layers that have one, `linear_attn`; nothing where they are not of one plan."""
    named, plans, layers = config.linear_attention_type, [], config.per_layer_config
    for index in config.recurrent_layers():
        plan = RECURRENT_PLANS.get(named[index] if isinstance(named, list) else named)
        plans.append({} if plan is None else plan(layers[index], layers[index].linear_settings(index)))
    return same_in_all(plans) if plans else {}


# Attentions whose heads can be split, and how; a pattern means the same in every layer, so all layers with attention
# are of one row. Recurrences are `linear_attn`, which no pattern here names.
HEAD_PLANS = {
    ("grouped_query", "shared_key_value"): grouped_query_plan,
    ("transformer_xl",): transformer_xl_plan,
    ("latent", "indexed"): latent_plan,
}


def attention_plan(config: PreTrainedConfig) -> dict[str, str]:
    """Heads split over ranks, in the layers that have attention; nothing where one of them needs all heads."""
    mixers = {name for name in config.attention_mixers if name is not None}
    # A norm inside sees all heads.
    if not mixers or "sub_norm" in config.block_types or biases_shared_blocks(config):
        return {}
    if any(goes_through_ranks(layer) for layer in config.per_layer_config):
        return {}
    plan = next((plan for names, plan in HEAD_PLANS.items() if mixers <= set(names)), None)
    layers = zip(config.attention_mixers, config.per_layer_config, strict=True)
    return same_in_all([plan(layer) for name, layer in layers if name is not None]) if plan else {}


def biases_shared_blocks(config: PreTrainedConfig) -> bool:
    """Whether layers and a block that they share read one bias on their scores, which no rank can have in two forms."""
    return bool(config.shared_block_layers) and config.position_embedding_type in POSITION_BIASES


def shared_block_plan(config: PreTrainedConfig) -> dict[str, str]:
    """Heads and inner channels of blocks that layers share, as of a layer; what a layer adds to them is whole, and each
    rank uses its part of it."""
    if not config.shared_block_layers or biases_shared_blocks(config):
        return {}
    layer = config.per_layer_config[config.shared_block_layers[0]]
    plan = grouped_query_plan(layer) | mlp_plan("layers.*.mlp.", layer)
    return {rule.replace("layers.", "shared_blocks.", 1): how for rule, how in plan.items()}


def goes_through_ranks(layer: PreTrainedConfig) -> bool:
    """Whether queries or outputs go through a rank, or values are rotated keys: of these no heads can be given away."""
    ranks = (layer.mla_config["query_rank"], layer.mla_config["output_rank"])
    return ranks != (None, None) or bool(layer.position_config["rope_values"])


def same_in_all(plans: list[dict[str, str]]) -> dict[str, str]:
    """The plan of each layer, {} where they differ: a pattern means the same in every layer."""
    return plans[0] if all(plan == plans[0] for plan in plans) else {}


def mlp_plan(prefix: str, config: PreTrainedConfig) -> dict[str, str]:
    """Inner channels split over ranks."""
    plan = {f"{prefix}up_proj": COLWISE, f"{prefix}down_proj": ROWWISE}
    plan |= {f"{prefix}act_fn": SUMMED} if config.hidden_act in LEARNED_ACTIVATIONS else {}
    return plan | ({f"{prefix}gate_proj": COLWISE} if config.gated_mlp else {})


def experts_plan(config: PreTrainedConfig) -> dict[str, str]:
    """Inner channels of every expert split over ranks; not with biases, which every rank would add."""
    prefix, plan = "layers.*.mlp.", {}
    if not config.expert_bias and config.gated_mlp:
        plan = {
            f"{prefix}experts.gate_up_proj": "packed_colwise",
            f"{prefix}experts.down_proj": ROWWISE,
            f"{prefix}experts": "moe_tp_experts",
        }
        plan |= {f"{prefix}experts.act_fn": SUMMED} if config.hidden_act in LEARNED_ACTIVATIONS else {}
    if config.n_shared_experts:
        plan |= mlp_plan(f"{prefix}shared_experts.", config)
    return plan


class ParallelPlans:
    """The plans as transformers looks for them: attributes of the config, paths relative to the base model."""

    @property
    def base_model_tp_plan(self) -> dict[str, str]:
        """Tensor parallel (Shoeybi et al. 2019, Megatron-LM, §3)."""
        plan = {"embed_tokens": "embedding_rowwise"} | attention_plan(self) | recurrent_plan(self)
        plan |= shared_block_plan(self)
        if self.hidden_size_per_layer_input:
            plan |= {f"{PER_LAYER}embed_tokens_per_layer": "embedding_rowwise"}
            plan |= {f"{PER_LAYER}per_layer_model_projection": GATHERED}
        layers = {"dense": [], "sparse": []}
        for kind, block, layer in zip(self.mlp_layer_types, self.block_types, self.per_layer_config, strict=True):
            if block not in WITHOUT_SPLIT_MLP:
                layers[kind].append(layer)
        # The mean and deviation of a gate are those of all its channels.
        if not any(layer.swiglu_config["activation_sparsity"] for layer in layers["dense"]):
            for layer in layers["dense"]:
                plan |= mlp_plan("layers.*.mlp.", layer)
        if layers["sparse"]:
            plan |= same_in_all([experts_plan(layer) for layer in layers["sparse"]])
        return plan

    @base_model_tp_plan.setter
    def base_model_tp_plan(self, plan: dict[str, str]) -> None:
        # transformers up to 5.19 writes the rule for the embedding of a tied head, which is in the plan as it is.
        if plan != self.base_model_tp_plan:
            raise AttributeError("base_model_tp_plan follows from the flags and cannot be set.")

    @property
    def base_model_ep_plan(self) -> dict[str, str] | None:
        """Expert parallel (Lepikhin et al. 2020, GShard): every rank holds some experts whole."""
        if "sparse" not in self.mlp_layer_types:
            return None
        prefix, names = "layers.*.mlp.experts", set()
        for layer in (self.per_layer_config[i] for i, kind in enumerate(self.mlp_layer_types) if kind == "sparse"):
            own = {"down_proj", "gate_up_proj" if layer.gated_mlp else "up_proj"}
            names |= own | ({f"{name}_bias" for name in own} if layer.expert_bias else set())
        return {f"{prefix}.{name}": "grouped_gemm" for name in sorted(names)} | {prefix: "ep_dispatch_experts"}
