"""A model n times as wide that computes the same (HyperCloning, Samragh et al. 2024, arXiv 2409.12903; Net2Net).

Every state is there n times: a matrix [out, in] whose inputs are n-fold becomes n × n blocks of W / n, one whose inputs
stay is repeated along its outputs alone, and vectors and embeddings are repeated. Heads and MLPs may grow with it.
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from configuration_zoo.vocabulary import WHOLE_STACK_BLOCKS
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .attention_heads import POSITIONS
from .operation import (
    ARITHMETIC,
    OF_RECURRENCES,
    Exactness,
    Example,
    Make,
    Operation,
    Request,
    Statistics,
    SurgeryError,
    as_they_are,
)

WIDTH = "hidden_size"
TAKES = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "moe_intermediate_size")
# Tables whose rows are looked up: their last channels are outputs.
TABLES = ("model.embed_tokens.weight", "model.embed_positions.weight")
FUSED = "gate_up_proj"


class ModelWidth(Operation):
    def __init__(self):
        super().__init__("width of the model", (WIDTH,), TAKES, parts=(), renumbers=True, invents=True)

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get(WIDTH), int)

    def examples(self, config: ZooConfig) -> list[Example]:
        if config.is_heterogeneous:
            return []
        fields = {WIDTH: 2 * config.hidden_size}
        for name in TAKES:
            if getattr(config, name, None) and "grouped_query" in config.attention_mixers:
                fields[name] = 2 * getattr(config, name)
        return [Example(fields, Exactness(ARITHMETIC), "twice as wide; train on")]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for a width that is no multiple, and for what does not grow alike."""
        factor, rest = divmod(request.fields[WIDTH], config.hidden_size)
        if rest or factor < 2:
            raise SurgeryError(
                f"{WIDTH}={request.fields[WIDTH]} must be a multiple of {config.hidden_size}, from twice on."
            )
        for name in TAKES:
            if name in request.fields and request.fields[name] not in (value := getattr(config, name), factor * value):
                raise SurgeryError(f"{name}={request.fields[name]} must be {value}, or {factor * value} as the width.")
        grown = {name for name in TAKES[:2] if request.get(name, getattr(config, name)) != getattr(config, name)}
        if len(grown) == 1:
            raise SurgeryError(f"{TAKES[0]} and {TAKES[1]} grow together, or neither does.")
        if config.position_embedding_type not in POSITIONS:
            raise SurgeryError(f"position_embedding_type={config.position_embedding_type!r} is computed for one width.")
        own_states = {name for name in config.recurrent_mixers if name is not None}
        own_states |= {*WHOLE_STACK_BLOCKS, "shared_block", "shortcut"} & set(config.block_types)
        if own_states:
            raise SurgeryError(f"{min(own_states)!r} has states of its own that do not grow alike.")
        if name := next(
            (one for one in ("hidden_size_per_layer_input", "embedding_size") if getattr(config, one)), None
        ):
            raise SurgeryError(f"{name}={getattr(config, name)}: an embedding of another width does not grow alike.")
        if config.is_heterogeneous:
            raise SurgeryError("per_layer_config: layers of their own sizes do not grow alike.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(ARITHMETIC)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        factor = request.fields[WIDTH] // config.hidden_size
        kept = ("head_dim", "v_head_dim", "attention_multiplier", "embedding_multiplier", *TAKES, *OF_RECURRENCES)
        said = as_they_are(config, *kept)
        if config.tie_word_embeddings:
            said["logits_scaling"] = (config.logits_scaling or 1.0) * factor
        grown = request.get(TAKES[1], config.num_key_value_heads) // config.num_key_value_heads
        if "block_indexed" in config.attention_mixers and grown > 1:  # its heads each choose for as many key heads
            said["index_n_heads"] = config.index_n_heads * factor
        return said | request.fields

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        wider, rules = expected_tensors(new).tensors, []
        for name, tensor in expected_tensors(config).tensors.items():
            if name in wider and wider[name].shape != tensor.shape:
                rules.append(Rule(name, name, tiled(name, tensor.shape, wider[name].shape)))
        if config.tie_word_embeddings and "lm_head.bias" in wider:
            factor = request.fields[WIDTH] // config.hidden_size  # the logits are divided with it
            rules.append(Rule("lm_head.bias", "lm_head.bias", Make(lambda ctx, bias: [bias * factor])))
        return rules


def tiled(name: str, old: torch.Size, new: torch.Size) -> Make:
    """Repeats a tensor along the channels that grow, and divides where its inputs do."""
    times = [there // here for here, there in zip(old, new, strict=True)]
    reads = len(old) > 1 and name not in TABLES and not name.endswith("bias")

    def make(ctx: Any, tensor: Tensor) -> list[Tensor]:
        if FUSED in name:  # gate and up each by itself
            side = 1 if "_bias" in name else -2
            tensor = tensor.unflatten(side, (2, -1))
            wide = times[:-2] + [1, *times[-2:]] if side == -2 else [times[0], 1, times[1]]
            made = tensor.repeat(*wide).flatten(side - 1 if side == -2 else 1, side if side == -2 else 2)
        else:
            made = tensor.repeat(*times)
        return [(made / times[-1] if reads else made).contiguous()]

    return Make(make)
