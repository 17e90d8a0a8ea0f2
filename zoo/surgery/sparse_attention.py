"""Latent attention → DeepSeek sparse attention (DeepSeek-V3.2, arXiv 2512.02556, §2.1): an indexer of small heads
chooses the `index_topk` keys that a query reads.

Attention itself stays as it is, so up to that many tokens nothing changes. The indexer is new and chooses at random
until it learns: first beside dense attention, whose weights it follows (healing's stage "indexer"), then in the sparse
model. Grouped-query attention becomes latent first.
"""

from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.ops import Context
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .latent_full import ATTENTION
from .operation import Exactness, Example, Make, Operation, Request, Statistics, SurgeryError, in_layers, up_to

TYPES, INDEXED, TOPK, HEADS, WIDTH = (
    "layer_types",
    "indexed_attention",
    "index_topk",
    "index_n_heads",
    "index_head_dim",
)
COEFFICIENT, LAYOUT = "indexer_loss_coef", "indexer.rope_interleave"
# Those of DeepSeek-V3.2 beside 128 heads with a rotated key of 64; narrower models get as much less.
MOST_HEADS, LEAST_WIDTH = 64, 32
START_STD = 0.02


class SparseAttention(Operation):
    def __init__(self):
        super().__init__(
            "latent → sparse attention",
            (TYPES,),
            (TOPK, HEADS, WIDTH, COEFFICIENT, LAYOUT),
            parts=("indexer",),
            fitting_steps=20,
            invents=True,
        )

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        wanted = fields.get(TYPES)
        if isinstance(wanted, list) and len(wanted) == config.num_hidden_layers:
            return {new for new, old in zip(wanted, config.layer_types, strict=True) if new != old} == {INDEXED}
        return wanted == INDEXED

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        wanted, mixers = fields.get(TYPES), config.attention_mixers
        full = [
            index
            for index, kind in enumerate(config.layer_types)
            if kind == "full_attention" and (not isinstance(wanted, list) or wanted[index] == INDEXED)
        ]
        # Where no layer is latent `check` says what to do about it.
        return [index for index in full if mixers[index] == "latent"] or full

    def examples(self, config: ZooConfig) -> list[Example]:
        if "latent" not in config.attention_mixers or not self.layers(config, {}):
            return []
        keys = max(1, config.max_position_embeddings // 8)
        fields = {TYPES: INDEXED, TOPK: keys}
        return [Example(fields, up_to(keys), "few keys for each query: heal, then measure")]

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for attention that is not latent, and where it is not said how many keys are read."""
        if other := {config.attention_mixers[layer] for layer in request.layers} - {"latent"}:
            raise SurgeryError(
                f"{TYPES}={INDEXED}: attention is {min(other)!r}, and an indexer goes with a latent: "
                "--set attention_type=latent as well."
            )
        if INDEXED in config.layer_types:
            raise SurgeryError(f"{TYPES}={INDEXED}: the model has such layers, and sizes are one for all indexers.")
        if not isinstance(request.get(TOPK), int) or request.fields[TOPK] < 1:
            raise SurgeryError(f"{TYPES}={INDEXED}: say {TOPK} as well, the number of keys that a query reads.")
        width = self.sizes(config, request)[WIDTH]
        if width < config.rope_head_width:
            raise SurgeryError(
                f"{WIDTH}={width} must be at least {config.rope_head_width}, the channels of a head that rotate."
            )

    def sizes(self, config: ZooConfig, request: Request) -> dict[str, int]:
        return {
            HEADS: request.get(HEADS, min(MOST_HEADS, max(1, config.num_attention_heads // 2))),
            WIDTH: request.get(WIDTH, max(LEAST_WIDTH, 2 * config.rope_head_width)),
        }

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return up_to(request.fields[TOPK])

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        types = list(config.layer_types)
        for layer in request.layers:
            types[layer] = INDEXED
        said = {name: value for name, value in request.fields.items() if name != TYPES}
        return {TYPES: types, COEFFICIENT: 1.0, "indexer.warmup": False} | self.sizes(config, request) | said

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        before, after = expected_tensors(config).tensors, expected_tensors(new).tensors
        stem = ATTENTION.format(i=request.layers[0])
        added = [name.removeprefix(stem) for name in after if name.startswith(stem) and name not in before]

        def born(ctx: Context, weight: Tensor) -> list[Tensor]:
            generator = torch.Generator().manual_seed(request.seed * 1009 + ctx.layer)
            made = [weight]
            for name in added:
                shape = after[f"{ATTENTION.format(i=ctx.layer)}{name}"].shape
                made.append(start(name, shape, generator).to(weight.dtype))
            return made

        first = f"{ATTENTION}o_proj.weight"
        return [
            Rule(first, [first, *(ATTENTION + name for name in added)], Make(born), where=in_layers(request.layers))
        ]


def start(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """As before training: matrices drawn, the norm of keys one and zero."""
    if len(shape) > 1:
        return torch.randn(shape, generator=generator) * START_STD
    return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
