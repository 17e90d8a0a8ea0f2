"""Small models of every mixer, for what is right or wrong whatever the size."""

import torch

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM

BASE = {
    "vocab_size": 128, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 8,
    "max_position_embeddings": 512,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 32}
LATENT = {
    "attention_type": "latent", "kv_lora_rank": 64, "q_lora_rank": 48, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 32, "num_key_value_heads": 8,
}  # fmt: skip
# DeepSeek-V3's widths (arXiv 2412.19437); a number of heads that fills no block.
PUBLISHED = LATENT | {
    "kv_lora_rank": 512, "q_lora_rank": 96, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "num_attention_heads": 20, "num_key_value_heads": 20,
}  # fmt: skip
HEADS = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
}  # fmt: skip
EXPERTS = {
    "mlp_layer_types": ["sparse"] * 2, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
    "router_aux_loss_coef": 0.01,
}  # fmt: skip
INDEXED = {"layer_types": ["indexed_attention"] * 2, "index_topk": 12, "index_n_heads": 4, "index_head_dim": 32}


def linear(kind: str, **fields) -> dict:
    """Fields of a recurrent layer of `kind` in front of one of attention."""
    layers = {"layer_types": ["linear_attention", "full_attention"], "linear_attention_type": kind}
    return GROUPED | HEADS | layers | fields


def banded(kind: str, **fields) -> dict:
    """Fields of a layer of `kind` in front of one of full attention."""
    return {"layer_types": [kind, "full_attention"], **fields}


# name -> fields of ZooConfig beyond BASE; None takes one away.
MIXERS = {
    "gqa": GROUPED,
    "mqa, head 80": {"num_key_value_heads": 1, "head_dim": 80},
    "sliding": GROUPED | banded("sliding_attention", sliding_window=16),
    "chunked": GROUPED | banded("chunked_attention", attention_chunk_size=16),
    "sinks": GROUPED | {"attention_sinks": "all"},
    "softcap": GROUPED | {"attn_logit_softcapping": 20.0},
    "alibi": GROUPED | {"position_embedding_type": "alibi"},
    "latent": LATENT,
    "latent 576/512": PUBLISHED,
    "latent sliding": LATENT | banded("sliding_attention", sliding_window=16),
    "sparse": LATENT | INDEXED,
    "experts": GROUPED | EXPERTS,
    "gated_delta_net": linear("gated_delta_net"),
    "kimi_delta_attention": linear("kimi_delta_attention", linear_attn_config={"decay_rank": 16, "gate_rank": 16}),
    "delta_net": linear("delta_net"),
    "gated_linear_attention": linear("gated_linear_attention"),
    "lightning_attention": linear("lightning_attention"),
    "linear_attention": linear("linear_attention"),
    "mamba2": linear("mamba2"),
    "mamba": linear("mamba", linear_num_key_heads=None, linear_num_value_heads=None, linear_value_head_dim=64,
                    linear_key_head_dim=16),
    "rg_lru": linear("rg_lru", linear_num_key_heads=None, linear_key_head_dim=None),
    "short_conv": linear("short_conv", **dict.fromkeys(HEADS)),
}  # fmt: skip
# Where rounding picks other keys or other experts, a result in bfloat16 may be another one.
CHOOSING = ("sparse", "experts")


def chosen(names: tuple[str, ...]) -> dict[str, dict]:
    """Those of MIXERS that are named, all where none is."""
    return {name: fields for name, fields in MIXERS.items() if not names or name in names}


def backends_of(fields: dict) -> tuple[str, ...]:
    """The attention backends that compute what these fields ask for: sdpa knows no sinks and no caps."""
    return ("eager",) if fields.get("attention_sinks") or "attn_logit_softcapping" in fields else ("eager", "sdpa")


def config_of(fields: dict, backend: str | None = None) -> ZooConfig:
    """BASE with these fields, on this backend or the fastest that knows them."""
    named = {key: value for key, value in (BASE | fields).items() if value is not None}
    return ZooConfig(**named, attn_implementation=backend or backends_of(fields)[-1])


def random_model(fields: dict, backend: str | None = None) -> ZooForCausalLM:
    """A model whose parameters are all random, in float32 on the CPU; the same for the same fields."""
    return randomize(ZooForCausalLM(config_of(fields, backend)))


@torch.no_grad()
def randomize(model: ZooForCausalLM, seed: int = 0) -> ZooForCausalLM:
    """All parameters random and of a size that keeps the residual stream near 1; decays mild."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("A_log"):
            parameter.copy_(noise * 0.5)
        elif name.endswith("dt_bias"):
            parameter.copy_(noise * 0.5 - 2)
        elif parameter.dim() < 2:
            parameter.copy_(1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise)
        else:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return model.eval()
