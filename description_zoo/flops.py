"""Floating-point operations of one token, counted as torch.utils.flop_counter counts them: two for each multiplication
of a matrix product, none for anything else.

    a matrix [n, m] of weights      2 n m                  for each token, of k of E experts k times an expert
    grouped-query attention         2 H (d + v)            for each key a query sees
    tensor product attention        2 K (R_k d + R_v v)    more, for each key, by decoding; once in a prompt
    latent attention                2 H (n + r + v)        expanded, a prompt; for each key
                                    2 H (c + r + c)        absorbed, a decoded token; for each key
    an indexer                      2 H_i (d_i + 1)        for each key, once there are more than it chooses
    entries of compressed attention                        one for each window of tokens that has ended, as a key
    a recurrence                    run on the meta device: what its chunks cost is the algorithm's

A query of a prompt of T tokens counts T keys, or its window: what a causal mask hides is counted, as the counter does
and PaLM (Chowdhery et al. 2022, appendix B). The backward pass costs two forwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from configuration_zoo.vocabulary import WINDOW_FIELDS

from .measure import body_of, experts_of, filled_cache, first_alike

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

# Lengths of prompts that are run for a recurrence: multiples of the chunks of every algorithm.
SHORT_PROMPT, LONG_PROMPT = 256, 512


def flops(model: "PreTrainedModel", context: int) -> dict[str, int]:
    """FLOPs of a token: `decode`d behind `context` - 1 others; of a `prompt` of `context` tokens, on average; in
    `train`ing on sequences of `context` tokens, without and with the checkpointing that computes layers twice."""
    parts = layer_flops(model)
    ends = end_flops(model)
    decode = ends + sum(part.decode(context) for part in parts)
    layers = sum(part.prompt(context) for part in parts)
    train = 3 * (ends + layers)
    if not model.config.indexer_loss_coef:
        # What chooses keys has no gradient but that of its own loss.
        train -= 2 * sum(part.indexer_cost(context) for part in parts)
    return {"decode": decode, "prompt": ends + layers, "train": train, "train_checkpointed": train + layers}


@dataclass(frozen=True)
class LayerFlops:
    """One layer. `fixed` operations for every token, by decoding and in a prompt; `per_key` ones in the same order, for
    at most `limit` keys; `indexer`: those of an indexer for its key, and, once there are more than `limit` keys, of its
    other matrices and for each key."""

    fixed: tuple[int, int]
    per_key: tuple[int, int] = (0, 0)
    limit: int | None = None
    indexer: tuple[int, int, int] = (0, 0, 0)
    # Tokens to an entry beside the keys, None for no entries; how many of these a query reads at most, None for all.
    rate: int | None = None
    entries: int | None = None

    def decode(self, context: int) -> int:
        return self._cost(0, context)

    def prompt(self, context: int) -> int:
        return self._cost(1, context)

    def _cost(self, way: int, context: int) -> int:
        keys = seen(context, self.limit) + (0 if self.rate is None else seen(context // self.rate, self.entries))
        return self.fixed[way] + self.per_key[way] * keys + self.indexer_cost(context)

    def indexer_cost(self, context: int) -> int:
        key, matrices, per_key = self.indexer
        scored, most = (context, self.limit) if self.rate is None else (context // self.rate, self.entries)
        chooses = any(self.indexer) and scored > most
        return key + (matrices + per_key * scored if chooses else 0)


def seen(context: int, limit: int | None) -> int:
    """Keys that a query sees among `context`, itself included."""
    return context if limit is None else min(context, limit)


def layer_flops(model: "PreTrainedModel") -> list[LayerFlops]:
    """Every layer; of recurrences that are alike one is run."""
    alike, recurrences, found = first_alike(model), {}, []
    for index, layer in enumerate(body_of(model).layers):
        config = model.config.per_layer_config[index]
        recurrence, indexer = getattr(layer, "linear_attn", None), indexer_of(layer)
        matrices = matrix_flops(layer, without=[recurrence, indexer]) + routed_flops(layer, config)
        if index in config.shared_block_layers:
            blocks = body_of(model).shared_blocks
            matrices += matrix_flops(blocks[blocks.turn[index]])
        costs = (0, 0)
        if recurrence is not None:
            if alike[index] not in recurrences:
                recurrences[alike[index]] = recurrence_flops(model, index)
            costs = recurrences[alike[index]]
        chosen = (0, 0, 0)
        if indexer is not None:
            made_of = next(getattr(indexer, name) for name in ("wk", "compressor", "k_proj") if hasattr(indexer, name))
            key, weighed = matrix_flops(made_of), hasattr(indexer, "weights_proj")
            chosen = key, matrix_flops(indexer) - key, 2 * indexer.heads * (indexer.width + weighed)
        made = factor_flops(config, index)
        fixed = (matrices + costs[0] + made[0], matrices + costs[1] + made[1])
        rate = config.compress_rates.get(config.layer_types[index])
        entries = None if indexer is None else config.index_topk
        attends = attention_flops(config, index)
        found.append(LayerFlops(fixed, *attends, indexer=chosen, rate=rate, entries=entries))
    return found


def indexer_of(layer: "nn.Module") -> "nn.Module | None":
    """The indexer of a layer with sparse attention that chooses for itself."""
    return getattr(getattr(layer, "self_attn", None), "indexer", None)


def matrix_flops(module: "nn.Module", without: "Sequence[nn.Module | None]" = ()) -> int:
    """Products with the matrices of a module, experts apart: every weight with two dimensions but tables and those of
    norms."""
    from torch import nn

    from modeling_zoo.mlp_experts import Experts
    from modeling_zoo.norms import LayerNorm, RMSNorm

    skipped = {id(part) for one in without if one is not None for part in one.modules()}
    others = (nn.Embedding, Experts, LayerNorm, RMSNorm)
    parts = [part for part in module.modules() if id(part) not in skipped and not isinstance(part, others)]
    weights = [pair for part in parts for pair in part.named_parameters(recurse=False)]
    # Biases of the gates of compressed tokens, by their place in a window.
    return sum(2 * weight.numel() for name, weight in weights if weight.ndim == 2 and name != "position_bias")


def routed_flops(layer: "nn.Module", config: Any) -> int:
    """The k routed experts of a token, zero experts taken for real ones."""
    count = 0
    for experts in experts_of(layer):
        one = sum(2 * weight.numel() // weight.shape[0] for weight in experts.parameters() if weight.ndim == 3)
        count += one * config.num_experts_per_tok
    return count


def attention_flops(config: Any, index: int) -> tuple[tuple[int, int], int | None]:
    """((operations per key by decoding, in a prompt), most keys) of a layer's attention."""
    if index not in config.softmax_layers:
        return (0, 0), None
    heads, kind = config.num_attention_heads, config.layer_types[index]
    field = {**WINDOW_FIELDS, "indexed_attention": "index_topk"}.get(kind)
    limit = getattr(config, field) if field else None
    if config.attention_types[index] != "latent":
        # A head of differential attention reads the values of a pair of heads.
        values = 2 if config.attention_types[index] == "differential" else 1
        cost = 2 * heads * (config.head_dim + values * config.value_width)
        return (cost + composed_flops(config, index), cost), limit
    width = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    absorbed = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    return (2 * heads * absorbed, 2 * heads * width), limit


def factor_flops(config: Any, index: int) -> tuple[int, int]:
    """(by decoding, in a prompt) the products of factors that give a token's queries, and in a prompt its keys and
    values."""
    if not config.has_factors(index, of_keys=True):
        return 0, 0
    queries = 2 * config.attention_factors["query_rank"] * config.num_attention_heads * config.head_dim
    return queries, queries + composed_flops(config, index)


def composed_flops(config: Any, index: int) -> int:
    """The products of factors that give one token's keys and values, which decoding repeats for every key."""
    if not config.has_factors(index, of_keys=True):
        return 0
    ranks = config.attention_factors
    widths = ranks["key_rank"] * config.head_dim + ranks["value_rank"] * config.value_width
    return 2 * config.num_key_value_heads * widths


def end_flops(model: "PreTrainedModel") -> int:
    """The head, and what stands between the table and the first layer."""
    body = body_of(model)
    head = model.get_output_embeddings()
    count = 0 if head is None else 2 * head.weight.numel()
    stems = [part for name, part in body.named_children() if name not in ("layers", "shared_blocks")]
    return count + sum(matrix_flops(part) for part in stems)


def recurrence_flops(model: "PreTrainedModel", index: int) -> tuple[int, int]:
    """(one decoded token, one token of a long prompt) of layer `index`'s recurrence, its projections included."""
    import torch

    mixer = body_of(model).layers[index].linear_attn
    cache = filled_cache(model, 1, [index])
    with torch.device("meta"), torch.no_grad():

        def run(length: int, **context: Any) -> Callable:
            return lambda: mixer(torch.empty(1, length, model.config.hidden_size, dtype=model.dtype), **context)

        step = counted(run(1, past_key_values=cache))
        short, long = counted(run(SHORT_PROMPT)), counted(run(LONG_PROMPT))
    return step, (long - short) // (LONG_PROMPT - SHORT_PROMPT)


def counted(work: Callable) -> int:
    """FLOPs of `work()` by torch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
