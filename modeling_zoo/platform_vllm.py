"""What a serving engine that runs transformers models (vLLM's backend) would silently drop is refused by name.

The engine keeps its own cache, computes attention by its own kernels and experts by its own fused SiLU, and makes
logits from `lm_head` itself. Everything between is the code of this package.

It finds out how a layer attends by reading the text of `forward` in the class of its mixer: that has to look a function
up in ALL_ATTENTION_FUNCTIONS and to call it once, with the scale as an attribute. So mixers get such a `forward` where
an engine runs them, from `served_class` below.
"""

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from configuration_zoo import ZooConfig

from .ops_attention_bands import AttentionMask

# Fields whose layers must agree, as the engine asks the config as a whole.
UNIFORM = ("num_attention_heads", "num_key_value_heads", "head_dim", "sliding_window", "moe_intermediate_size")
SEEN = {"full_attention", "sliding_attention"}
SERVED_ATTENTIONS = {"grouped_query", "latent"}
ROUTER_KEYS = ("weight_on_input", "input_norm", "norm_topk_min", "logit_softcapping", "latent_norm")


def unsupported_by_vllm(config: ZooConfig) -> list[str]:
    """Names of the fields that an engine cannot honour as they are; [] for a config it serves."""
    found = fields_of_model(config) if fields_of_model(config) else []
    if fields_of_layers(config):
        found += fields_of_layers(config)
    return list(dict.fromkeys(found + fields_of_values(config)))


def _names_of_set(conditions):
    return [name for name, asked in conditions.items() if asked]


def fields_of_model(config: ZooConfig) -> list[str]:
    """Those that say what layers are and how they are joined."""
    blocks = [config.block_type] if isinstance(config.block_type, str) else config.block_type
    return _names_of_set({
        "layer_types": set(config.layer_types) - SEEN,
        "block_type": {"mixer_only", "mlp_only", "shortcut", "sub_norm", "gated_norm", "gated_attn_norm"} & set(blocks),
        "position_embedding_type": config.position_embedding_type in ("alibi", "relative", "transformer_xl"),
        "use_bidirectional_attention": config.use_bidirectional_attention,
        "sparse_attention_pattern": config.sparse_attention_pattern,
        "num_kv_shared_layers": config.num_kv_shared_layers,
        "hidden_size_per_layer_input": config.hidden_size_per_layer_input,
        "embedding_size": config.embedding_size not in (None, config.hidden_size),
        # The engine asks for the width of a latent head once for all layers.
        "per_layer_config": "latent" in config.attentions and config.is_heterogeneous,
        "attention_type": len(config.attentions) > 1 or not config.attentions <= SERVED_ATTENTIONS,
        # The engine caps before it multiplies by `logit_scale`, a model after that.
        "logits_scaling": config.logits_scaling != 1.0 and config.final_logit_softcapping is not None,
    })  # fmt: skip


def fields_of_values(config: ZooConfig) -> list[str]:
    """Those whose values may differ from run to run."""
    tables = [table for layer in config.per_layer_config for table in layer.rope_tables.values()]
    return _names_of_set({
        # Their tables depend on the length of one sequence; the engine runs many side by side.
        "rope_parameters": any(table.get("rope_type") in ("dynamic", "longrope") for table in tables),
        "suppressed_token_ids": config.suppressed_token_ids,
    })  # fmt: skip


def fields_of_layers(config: ZooConfig) -> list[str]:
    """Those of the layers one by one."""
    found, layers = [], config.per_layer_config if config.is_heterogeneous else [config]
    for layer in layers:
        kinds = {*layer.attentions, "dense" if layer.num_experts is None else "sparse"}
        parts = [fields(layer) for kind, fields in UNHONOURED.items() if kind in kinds]
        found += ["attention_sinks"] * bool(layer.attention_sinks) + sum(parts, [])
    if config.is_heterogeneous:
        found += [name for name in UNIFORM if len({getattr(layer, name) for layer in layers}) > 1]
    return found


def _of_grouped_query(layer):
    return _names_of_set({
        # The engine puts its own norm, with one weight for all heads, in place of every RMS norm.
        "qk_norm_config.weight": layer.qk_norm == "rms_norm" and layer.qk_norm_config["weight"] == "per_head",
        "v_head_dim": layer.v_head_dim not in (None, layer.head_dim),
    })  # fmt: skip


def _of_experts(layer):
    return _names_of_set({
        "hidden_act": layer.hidden_act != "silu",
        "gated_mlp": not layer.gated_mlp,
        "swiglu_limit": layer.swiglu_limit is not None,
        "swiglu_config.clamp_behind_activation": layer.swiglu_config["clamp_behind_activation"],
        "swiglu_config.alpha": layer.swiglu_config["alpha"] is not None,
        "swiglu_config.gate_softcap": layer.swiglu_config["gate_softcap"] is not None,
        "swiglu_config.up_softcap": layer.swiglu_config["up_softcap"] is not None,
        "swiglu_config.up_offset": layer.swiglu_config["up_offset"] is not None,
        "expert_bias": layer.expert_bias,
        "moe_latent_size": layer.moe_latent_size,
        "zero_expert_num": layer.zero_expert_num,
        **{f"router.{key}": layer.router[key] for key in ROUTER_KEYS},
        "shared_expert_combination_strategy": layer.shared_expert_combination_strategy not in (None, "sum"),
        "scoring_func": layer.scoring_func not in ("softmax", "sigmoid"),
    })  # fmt: skip


# What an engine does not honour of a layer, by its attention or its MLP.
UNHONOURED = {"grouped_query": _of_grouped_query, "sparse": _of_experts}


def is_served(config: ZooConfig) -> bool:
    """Whether the attention of this config's layers is computed by such an engine."""
    return str(config._attn_implementation).startswith("vllm")


def check_backend(config: ZooConfig, backend: str | None) -> str | None:
    """`backend` as it is; raises ValueError where it is such an engine's, with the first field it would not honour."""
    for field in unsupported_by_vllm(config)[:1] if str(backend).startswith("vllm") else ():
        values = [getattr(layer, field) for layer in config.per_layer_config]
        differs = any(value != values[0] for value in values)
        value = f"{field} that differs over layers" if differs else f"{field}={values[0]!r}"
        raise ValueError(
            f"A serving engine would not honour {value}: export the model to its native family "
            "(`python -m conversion FOLDER TARGET --to FAMILY`) and serve that."
        )
    return backend


class ServedGroupedQuery:
    """Grouped-query attention whose cache and attention are the engine's; mixed in before the class itself."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, ...] | None = None,
        attention_mask: AttentionMask = None,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        shared_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, gate = self.queries(hidden_states, position_embeddings, position_ids)
        key, value = self.update_cache(hidden_states, position_embeddings, past_key_values, shared_key_values)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, None)
        attn_output, weights = attention(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        # The engine gives heads side by side.
        attn_output = attn_output.view(*hidden_states.shape[:-1], -1, self.value_width)
        return self.output(attn_output, hidden_states, gate), weights


class ServedLatent:
    """The same for latent attention.

    Where the engine keeps a cache of latents, it merges the two first maps and takes the call of `expand` out of this
    text, so that latent and rope key reach its function in place of keys and values.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, ...] | None = None,
        attention_mask: AttentionMask = None,
        past_key_values: Cache | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        refuse_in_latent_engine(self)
        # The engine merges these two only where neither result may be their input under another name.
        low_rank = self.q_a_proj(hidden_states) if self.ranked else None
        joint = self.kv_a_proj_with_mqa(hidden_states)
        source = low_rank if self.ranked else hidden_states
        query, gate, latent, rope_key, _ = self.split(source, joint, position_embeddings, position_ids)
        latent, rope_key = self.update_cache(latent, rope_key, past_key_values)
        query, (key, value) = torch.cat(query, dim=-1), self.expand(latent, rope_key)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, None)
        attn_output, weights = attention(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        attn_output = attn_output.view(*hidden_states.shape[:-1], -1, self.value_width)
        return self.output(attn_output, hidden_states, gate), weights


SERVED_FORWARDS = {"grouped_query": ServedGroupedQuery, "latent": ServedLatent}


def served_class(mixer_class: type, name: str, config: ZooConfig) -> type:
    """The class of a mixer of this registry name: `mixer_class`, or under an engine one with the `forward` it reads."""
    return _served(mixer_class, SERVED_FORWARDS[name]) if name in SERVED_FORWARDS and is_served(config) else mixer_class


@cache
def _served(mixer_class, forward_class):
    # One class for all layers: the engine reads each class once.
    return type(f"Served{mixer_class.__name__}", (forward_class, mixer_class), {})


def refuse_in_latent_engine(mixer: nn.Module) -> None:
    """Raises ValueError for what the engine's own attention over latents would silently drop (over keys and values of
    every head it honours both), and where it takes another width for that of a cached latent."""
    config = mixer.config
    if config._attn_implementation != "vllm_mla":
        return
    dropped = {"attn_logit_softcapping": mixer.softcap, "sliding_window": mixer.sliding_window}
    found = [f"would not honour {name}={value}" for name, value in dropped.items() if value is not None]
    width, instead = config.kv_lora_rank + config.qk_rope_head_dim, ""
    if not found and config.head_dim != width:
        found = [f"takes head_dim={config.head_dim} for its width, which is {width}"]
        instead = f"pass hf_overrides={{'head_dim': {width}}} if it has kernels for that (320, 512, 576), else "
    if found:
        raise ValueError(
            f"vLLM's cache of latents {found[0]}: {instead}set VLLM_MLA_DISABLE=1, and keys and values of every head "
            "are cached instead."
        )
