"""A recurrence beside attention, silent until it learns: y = attention(x) + W_o r(x) with W_o = 0, to the bit.

Attention stays as it is (Hymba, Dong et al. 2024, arXiv 2411.13676, and Falcon-H1, arXiv 2507.22448, train such layers
from scratch). What the recurrence reads, forgets and writes starts as a new model's, drawn by the seed: with all of it
zero nothing would ever learn, with W_o alone zero W_o learns from the first step and the rest from the second.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from configuration_zoo import ZooConfig
from configuration_zoo.fields_linear import LINEAR_FIELDS, RECURRENCES
from conversion.engine.ops import Context
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import empty_model, expected_tensors, own_dtypes
from modeling_zoo.registry import make_mixers

from .latent_full import ATTENTION
from .operation import BITS, Exactness, Example, Make, Operation, Request, Statistics, SurgeryError

TYPES, KIND = "layer_types", "linear_attention_type"
# The type with a recurrence -> the one it is made of, whose attention sees as far.
BESIDE = {"hybrid": "full_attention", "hybrid_sliding": "sliding_attention"}
DEFAULT = "gated_delta_net"
# Factors on the attention of a hybrid layer, which other layers do not have.
FACTORS = ("mup_multipliers.attention_in", "mup_multipliers.attention_out")
# Where a recurrence writes to the residual stream.
WRITES = ("o_proj.weight", "o_proj.bias")


class SilentRecurrence(Operation):
    def __init__(self):
        super().__init__("a recurrence beside attention", (TYPES,), (KIND, *LINEAR_FIELDS), invents=True)

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        wanted = fields.get(TYPES)
        if not isinstance(wanted, list):
            return wanted in BESIDE
        pairs = list(zip(wanted, config.layer_types, strict=len(wanted) == config.num_hidden_layers))
        differ = [new in BESIDE and BESIDE[new] == old for new, old in pairs if new != old]
        return bool(differ) and all(differ) and len(wanted) == config.num_hidden_layers

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        wanted = fields.get(TYPES)
        entries = wanted if isinstance(wanted, list) else [wanted] * config.num_hidden_layers
        pairs = enumerate(zip(entries, config.layer_types, config.attention_mixers, strict=True))
        return [index for index, (new, old, name) in pairs if BESIDE.get(new) == old and name == "grouped_query"]

    def examples(self, config: ZooConfig) -> list[Example]:
        kind = kind_of(config, Request({}, []))
        return [
            Example({TYPES: word, KIND: kind}, Exactness(BITS), "a state beside the cache, silent until it learns")
            for word in BESIDE
            if self.layers(config, {TYPES: word})
        ]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError where a hybrid layer would change what attention does, or recurrences would differ."""
        kind = kind_of(config, request)
        if kind not in RECURRENCES:
            raise SurgeryError(f"{KIND}={kind!r} is none of {list(RECURRENCES)}.")
        there = {name for name in config.recurrent_mixers if name is not None}
        if other := sorted(there - {kind}):
            raise SurgeryError(f"{KIND}: the model has layers of {other[0]!r}; sizes are one for all recurrences.")
        if there and (given := sorted(set(request.fields) & set(LINEAR_FIELDS))):
            raise SurgeryError(f"{given[0]} is one for all recurrences, and layers have one already: leave it out.")
        for name in FACTORS:
            if getattr(config, name) not in (None, 1, 1.0):
                raise SurgeryError(f"{name}={getattr(config, name)!r} would scale the attention of a hybrid layer.")
        if config.num_kv_shared_layers:
            raise SurgeryError(f"num_kv_shared_layers={config.num_kv_shared_layers}: layers share keys and values.")
        if "shared_block" in config.block_types:
            raise SurgeryError("block_type='shared_block': what stands beside a recurrence there is shared.")
        if config.attention_sinks not in (None, "all"):
            raise SurgeryError(f"attention_sinks={config.attention_sinks!r} would not name a hybrid layer: say 'all'.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(BITS)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        words = {old: new for new, old in BESIDE.items()}
        types = list(config.layer_types)
        for layer in request.layers:
            types[layer] = words[types[layer]]
        changes: dict[str, Any] = {TYPES: types, KIND: kind_of(config, request)}
        if config.rope_tables and "default" not in config.rope_tables:
            tables = {words.get(name, name): table for name, table in config.rope_tables.items()}
            changes["rope_parameters"] = {name: t for name, t in (config.rope_tables | tables).items() if name in types}
        if isinstance(config.no_rope_layers, list):
            changes["no_rope_layers"] = config.no_rope_layers
        return changes | {name: value for name, value in request.fields.items() if name in LINEAR_FIELDS}

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        model, after = empty_model(new), expected_tensors(new).tensors
        kept, rules = own_dtypes(new, config.dtype or torch.float32), []
        for layer in request.layers:
            stem, projection = f"model.layers.{layer}.linear_attn.", f"{ATTENTION.format(i=layer)}o_proj.weight"
            names = [name for name in after if name.startswith(stem)]
            shapes = [after[name].shape for name in (projection, *names)]

            def make(ctx: Context, weight: Tensor, stem=stem, names=names, layer=layer) -> list[Tensor]:
                drawn = silent_mixer(model, new, layer, request.seed)
                return [weight, *(drawn[name.removeprefix(stem)].to(kept.get(name, weight.dtype)) for name in names)]

            made = Make(make, lambda ctx, shapes=shapes: shapes)
            rules.append(Rule(projection, [projection, *names], made))
        return rules


def kind_of(config: ZooConfig, request: Request) -> str:
    """The mechanism that is asked for, that of the recurrences that are there, or the default."""
    there = [name for name in config.recurrent_mixers if name is not None]
    return request.get(KIND, there[0] if there else DEFAULT)


@torch.no_grad()
def silent_mixer(model: PreTrainedModel, config: ZooConfig, layer: int, seed: int) -> dict[str, Tensor]:
    """The tensors of the recurrence of a layer, by their names in it, as the model itself would start them; what it
    writes is zero. `model` has no numbers: only this mixer gets some."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1009 + layer)
        mixer = make_mixers(config.per_layer_config[layer] if config.is_heterogeneous else config, layer)["linear_attn"]
        initialized(model, layer, mixer)
    tensors = {name: tensor.detach() for name, tensor in mixer.state_dict().items()}
    return {name: torch.zeros_like(one) if name in WRITES else one for name, one in tensors.items()}


def initialized(model: PreTrainedModel, layer: int, mixer: nn.Module) -> None:
    """Starts a mixer as the initialisation of the model does in this layer."""
    body = getattr(model, model.base_model_prefix, model)
    body.layers[layer].linear_attn = mixer
    mixer.apply(body._init_weights)
