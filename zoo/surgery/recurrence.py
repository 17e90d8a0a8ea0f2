"""Attention → a recurrence with a state of fixed size, in some layers (LoLCATs, arXiv 2410.10254; RADLADS, 2505.03005).

Queries, keys, values and the output projection start as they were, keys and values repeated to one head per query head;
the convolution passes everything through; what attention has no counterpart of, decays and write strengths, starts as
in training. That start computes nothing useful yet: a little training on the layer's outputs is a part of the
operation's use, and which layers cost least is seen only after it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from configuration_zoo import ZooConfig
from conversion.engine.ops import Context
from conversion.engine.rules import Drop, Rule
from conversion.engine.zoo_side import expected_tensors
from modeling_zoo.recurrent_convolution import ShortConvolution
from modeling_zoo.registry import make_mixers

from .operation import (
    APPROXIMATE,
    OF_RECURRENCES,
    Exactness,
    Example,
    Make,
    Operation,
    Request,
    Statistics,
    SurgeryError,
)

TYPES, KIND, RECURRENT = "layer_types", "linear_attention_type", "linear_attention"
DETAILS = ("act", "output_gate", "output_norm", "feature_map", "qk_norm", "bias", "conv_bias", "allow_neg_eigval")
# Mechanisms with queries, keys and values of their own names, which can start from those of attention.
WITH_QUERIES = (
    "gated_delta_net", "kimi_delta_attention", "delta_net", "linear_attention", "gated_linear_attention",
    "lightning_attention",
)  # fmt: skip
WITHOUT_QUERIES = ("mamba2", "mamba", "rg_lru")
COPIED = ("q_proj.", "k_proj.", "v_proj.", "o_proj.")
START_STD, DEFAULT = 0.02, "gated_delta_net"


class Recurrence(Operation):
    def __init__(self):
        details = tuple(f"linear_attn_config.{name}" for name in DETAILS)
        takes = (KIND, *OF_RECURRENCES, "linear_conv_kernel_dim", *details)
        super().__init__("attention → recurrence", (TYPES,), takes, parts=("mixer",), fitting_steps=40, invents=True)

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        wanted = fields.get(TYPES)
        if isinstance(wanted, list) and len(wanted) == config.num_hidden_layers:
            return {new for new, old in zip(wanted, config.layer_types, strict=True) if new != old} == {RECURRENT}
        return wanted == RECURRENT

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        wanted = fields.get(TYPES)
        recurrent, attention = config.recurrent_mixers, config.attention_mixers
        return [
            index
            for index in range(config.num_hidden_layers)
            if recurrent[index] is None
            and attention[index] in ("grouped_query", "latent")
            and (not isinstance(wanted, list) or wanted[index] == RECURRENT)
        ]

    def examples(self, config: ZooConfig) -> list[Example]:
        if not self.layers(config, {}):
            return []
        fields = {TYPES: RECURRENT, KIND: DEFAULT}
        return [Example(fields, Exactness(APPROXIMATE), "no cache that grows: --layers auto:n, then heal")]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where layers share what the new ones would not have, or the mechanism is missing."""
        if config.num_kv_shared_layers:
            raise SurgeryError(f"num_kv_shared_layers={config.num_kv_shared_layers}: layers share keys and values.")
        if "shared_block" in config.block_types:
            raise SurgeryError("block_type='shared_block': layers share an attention.")
        kind = request.get(KIND, DEFAULT)
        if kind not in (*WITH_QUERIES, *WITHOUT_QUERIES):
            raise SurgeryError(f"{KIND}={kind!r} is none of {sorted((*WITH_QUERIES, *WITHOUT_QUERIES))}.")
        others = {name for name in config.recurrent_mixers if name is not None} - {kind}
        if others:
            raise SurgeryError(f"{KIND}: the model has layers of {min(others)!r}; sizes are one for all recurrences.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(APPROXIMATE)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        types, kind = list(config.layer_types), request.get(KIND, DEFAULT)
        for layer in request.layers:
            types[layer] = RECURRENT
        changes: dict[str, Any] = {TYPES: types, KIND: kind}
        already = any(name is not None for name in config.recurrent_mixers)
        if kind in WITH_QUERIES and not already:
            heads = config.num_attention_heads
            changes |= dict(zip(OF_RECURRENCES, (heads, heads, config.head_dim, config.value_width), strict=True))
            changes |= {"linear_attn_config.act": "none", "linear_attn_config.output_gate": "sigmoid"}
        elif kind == "mamba2" and not already:
            heads = config.num_attention_heads
            changes |= dict(zip(OF_RECURRENCES, (1, heads, 2 * config.head_dim, config.head_dim), strict=True))
        if isinstance(config.no_rope_layers, list):
            changes["no_rope_layers"] = config.no_rope_layers
        return changes | {name: value for name, value in request.fields.items() if name != TYPES}

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        before, after = expected_tensors(config).tensors, expected_tensors(new).tensors
        rules = []
        for layer in request.layers:
            stem = f"model.layers.{layer}."
            sources = [name for name in before if name.startswith(f"{stem}self_attn.")]
            targets = [name for name in after if name.startswith(f"{stem}linear_attn.")]
            shapes = [after[name].shape for name in targets]

            def make(ctx: Context, *tensors: Tensor, layer=layer, sources=sources, targets=targets) -> list[Tensor]:
                old = {name.partition("self_attn.")[2]: one for name, one in zip(sources, tensors, strict=True)}
                made = mixer_from(config, new, layer, old, request.seed)
                return [made[name.partition("linear_attn.")[2]].to(tensors[0].dtype) for name in targets]

            rules.append(Rule(sources, targets, Make(make, lambda ctx, shapes=shapes: shapes)))
        return rules + [Drop(name) for name in before if name not in after and not name.startswith("model.layers.")]


def mixer_from(config: ZooConfig, new: ZooConfig, layer: int, old: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The tensors of a recurrence that starts from those of an attention, by their names in it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1009 + layer)
        mixer = make_mixers(new.per_layer_config[layer] if new.is_heterogeneous else new, layer)["linear_attn"]
        start(mixer)
    made = {name: tensor.detach() for name, tensor in mixer.state_dict().items()}
    repeat = config.num_attention_heads // config.num_key_value_heads
    for name, tensor in old.items():
        if name.startswith(("k_proj.", "v_proj.")):
            heads = tensor.unflatten(0, (config.num_key_value_heads, -1)).repeat_interleave(repeat, 0)
            tensor = heads.flatten(0, 1)
        fits = name in made and made[name].shape == tensor.shape
        if fits and name.startswith(COPIED):
            made[name] = tensor
    return made


@torch.no_grad()
def start(mixer: nn.Module) -> None:
    """Numbers as before training, and convolutions that pass on what they read."""
    for module in mixer.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0, START_STD)
            if module.bias is not None:
                module.bias.zero_()
        elif hasattr(module, "initialize"):
            module.initialize(START_STD)
        if isinstance(module, ShortConvolution):
            module.weight.zero_()[..., -1] = 1
            if module.bias is not None:
                module.bias.zero_()
