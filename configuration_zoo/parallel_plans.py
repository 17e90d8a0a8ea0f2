"""How a model is split over devices: transformers' tensor- and expert-parallel plans, derived from the flags.

A plan names modules by pattern, `*` for a layer's number, and says how each is split. Only what the instance has is
named. What stands in no plan is the same on every rank.
"""

COLWISE, ROWWISE = "colwise", "rowwise"
# Position biases are computed for all heads at once, latent and recurrent mixers keep their heads together.
WHOLE_HEADS_POSITIONS = ("alibi", "relative", "transformer_xl")


def attention_plan(config) -> dict[str, str]:
    """Heads split over ranks, or nothing where a mixer needs all of them."""
    if "grouped_query" not in config.mixer_types or config.position_embedding_type in WHOLE_HEADS_POSITIONS:
        return {}
    # A norm over all heads, or with a weight per head, sees whole projections: gather them before, split after.
    whole = config.qk_norm is not None and (config.qk_norm_scope == "full" or config.qk_norm_weight == "per_head")
    projection, output = ("colwise_gather_output", "rowwise_split_input") if whole else (COLWISE, ROWWISE)
    prefix = "layers.*.self_attn."
    plan = {f"{prefix}{name}_proj": projection for name in "qkv"} | {f"{prefix}o_proj": output}
    if config.qk_norm is not None and config.qk_norm_weight == "shared" and not whole:
        plan |= {f"{prefix}{name}_norm": "replicated_with_grad_allreduce" for name in "qk"}
    if config.attn_gate_source == "g_proj":
        plan[f"{prefix}output_gate.g_proj"] = projection
    if config.attention_sinks is not None and not whole:
        plan |= {f"{prefix}sinks": COLWISE, "layers.*.self_attn": "local_params"}
    return plan


def mlp_plan(prefix: str, gated: bool) -> dict[str, str]:
    """Inner channels split over ranks."""
    plan = {f"{prefix}up_proj": COLWISE, f"{prefix}down_proj": ROWWISE}
    return plan | ({f"{prefix}gate_proj": COLWISE} if gated else {})


def experts_plan(config) -> dict[str, str]:
    """Inner channels of every expert split over ranks; not with biases, which every rank would add."""
    prefix, plan = "layers.*.mlp.", {}
    if not config.expert_bias and config.gated_mlp:
        plan = {
            f"{prefix}experts.gate_up_proj": "packed_colwise",
            f"{prefix}experts.down_proj": ROWWISE,
            f"{prefix}experts": "moe_tp_experts",
        }
    if config.n_shared_experts:
        plan |= mlp_plan(f"{prefix}shared_experts.", config.gated_mlp)
    return plan


class ParallelPlans:
    """The plans as transformers looks for them: attributes of the config, paths relative to the base model."""

    @property
    def base_model_tp_plan(self) -> dict[str, str]:
        """Tensor parallel (Shoeybi et al. 2019, Megatron-LM, §3)."""
        plan = {"embed_tokens": "embedding_rowwise"} | attention_plan(self)
        layers = [
            kind for kind, block in zip(self.mlp_layer_types, self.block_types, strict=True) if block != "mixer_only"
        ]
        if "dense" in layers:
            plan |= mlp_plan("layers.*.mlp.", self.gated_mlp)
        if "sparse" in layers:
            plan |= experts_plan(self)
        return plan

    @property
    def base_model_ep_plan(self) -> dict[str, str] | None:
        """Expert parallel (Lepikhin et al. 2020, GShard): every rank holds some experts whole."""
        if "sparse" not in self.mlp_layer_types:
            return None
        prefix = "layers.*.mlp.experts"
        names = ["down_proj", "gate_up_proj" if self.gated_mlp else "up_proj"]
        if self.expert_bias:
            names += [f"{name}_bias" for name in names]
        return {f"{prefix}.{name}": "grouped_gemm" for name in names} | {prefix: "ep_dispatch_experts"}
