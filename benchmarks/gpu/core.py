"""The attention of one decoded token alone, launches not counted: its share of the bandwidth of a copy."""

import math
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM
from modeling_zoo.ops_attention import attention
from modeling_zoo.ops_attention_indexer import index_scores, top_positions
from modeling_zoo.ops_attention_multi_query import multi_query_attention, plain_multi_query
from modeling_zoo.ops_attention_sparse import kernel_suits, read_gathered, read_in_place
from modeling_zoo.ops_recurrence import delta_rule
from modeling_zoo.ops_recurrence_decode import delta_step

from .harness import HALF, Item, Run, label, relative_error, replayed, seconds

CONTEXTS, BATCHES = (8192, 32768, 131072), (1, 8, 64)
# Share of a copy's bandwidth to reach over 2¹⁸ tokens. 128 latent heads are bound by arithmetic: FlashMLA reaches 0.68
# of an H800's bandwidth there.
BARS = {"mla": 0.65, "mla 64 heads": 0.85, "mla 16 heads": 0.85, "gqa": 0.85, "gqa masked": 0.85}
BAR_FROM = 2**18
# Bytes of a cache beyond which a case is left out; the same for products of the indexer.
MOST_CACHE, MOST_PRODUCTS = 26 * 2**30, 8e9
# Bytes that no cache of the device holds.
BEYOND_CACHES = 3e8
FORMS = ("plain", "chosen")
RANK, ROPE = 512, 64

# A core is built as (work(i), bytes that must be read, input sets to go round).
Built = tuple[Callable[[int], object], float, int]


def items(run: Run) -> list[Item]:
    """Every core in every shape, small ones first, by its plain form and by the one that zoo chooses."""
    pairs = [(c, b) for c in CONTEXTS for b in BATCHES]
    shapes = [(64, 1), (64, 2)] if run.tiny else sorted(pairs, key=lambda pair: pair[0] * pair[1])
    return [
        Item(
            f"{name} {label(context)}×{batch} {form}",
            lambda case=(name, context, batch, form), build=build: timed(run, case, build),
            needs=3,
        )
        for context, batch in shapes
        for name, (size_of, build) in CORES.items()
        for form in FORMS
        if size_of(context, batch) <= MOST_CACHE and is_measured(name, context, batch, form, shapes[0][0])
    ]


def is_measured(name: str, context: int, batch: int, form: str, shortest: int) -> bool:
    """Whether a case says something of its own and fits into memory."""
    if name == "gdn":
        # A state is as large behind any context; other forms than the plain one are flash-linear-attention's.
        return context == shortest and form == "plain"
    # Beside a mask torch repeats the keys for every head, in float32.
    return name != "gqa masked" or form == "chosen" or context * batch <= BAR_FROM


def timed(run: Run, case: tuple, build: Callable) -> dict:
    """Microseconds, GB/s of what must be read, and its share of the copy; whether it could be captured."""
    name, context, batch, form = case
    with torch.no_grad():
        work, size, sets = build(run, context, batch, form)
        taken, why = replayed(run, work, sets)
        taken = taken or seconds(run, work, 5, sets)
    values = {"model": name, "context": context, "batch": batch, "form": form, "us": taken * 1e6}
    values |= {"GBps": size / taken / 1e9, "share": size / taken / 1e9 / run.ceilings.get("copy_GBps", math.inf)}
    if why:
        values["not_captured"] = why
    if form == "chosen" and name in BARS and context * batch >= BAR_FROM:
        values |= {"bar": BARS[name], "of": "share"}
    return values


def input_sets(run: Run, size: float) -> int:
    """So many input sets that the caches of the device cannot hold them."""
    return 1 if run.tiny else max(1, min(16, math.ceil(BEYOND_CACHES / size)))


def normal(run: Run, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=run.device, dtype=HALF)


def on_cpu(states: torch.Tensor) -> torch.Tensor:
    """The last row in float32: offsets into a large cache are the largest there."""
    return states[-1:].cpu().float()


def refuse_wrong(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Raises where the last row is not what the CPU computed, in whatever order of axes of length one: what is wrong
    is not timed."""
    error = relative_error(found[-1:].reshape(expected.shape), expected)
    if not error < 2e-2:
        raise AssertionError(f"wrong by {error:.2g}")


# -- latent, grouped, sparse, recurrent --------------------------------------------------------------------------------


def latent_size(context: int, batch: int) -> int:
    return 2 * batch * context * (RANK + ROPE)


def latent_core(heads: int) -> Callable[..., Built]:
    """Absorbed latent attention of so many heads."""

    def build(run: Run, context: int, batch: int, form: str) -> Built:
        size = latent_size(context, batch)
        keys = [normal(run, batch, context, RANK + ROPE) for _ in range(input_sets(run, size))]
        query = normal(run, batch, heads, 1, RANK + ROPE) * 0.05
        read = plain_multi_query if form == "plain" else multi_query_attention

        def work(i):
            return read((query,), (keys[i],), RANK, 0.1)[0]

        parts = [on_cpu(part) for part in (query, keys[0])]
        refuse_wrong(work(0), plain_multi_query(parts[:1], parts[1:], RANK, 0.1)[0])
        return work, size, len(keys)

    return build


def grouped_size(context: int, batch: int) -> int:
    return 4 * batch * context * 8 * 128


def grouped_layer(**fields):
    """An attention layer of 32 heads over 8 of 128, narrow elsewhere, that the operation may ask."""
    narrow = {"vocab_size": 8, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    config = ZooConfig(**narrow, **heads, **fields, attn_implementation="sdpa")
    return ZooForCausalLM(config).eval().model.layers[0].self_attn


def grouped_core(window: int | None = None, masked: bool = False) -> Callable[..., Built]:
    """Grouped queries over all keys, over a window of them, or beside a mask `[B, 1, 1, S]`."""

    def build(run: Run, context: int, batch: int, form: str) -> Built:
        length = min(window or context, context)
        size = grouped_size(length, batch)
        keys = [normal(run, 2, batch, 8, length, 128) for _ in range(input_sets(run, size))]
        query, layer = normal(run, batch, 32, 1, 128), grouped_layer()
        mask = torch.ones(batch, 1, 1, length, dtype=torch.bool, device=run.device) if masked else None

        def work(i):
            if form == "plain":
                return scaled_dot_product_attention(
                    query, *keys[i], attn_mask=mask, scale=layer.scaling, enable_gqa=True
                )
            return attention(layer, query, *keys[i], mask)[0]

        expected = scaled_dot_product_attention(
            on_cpu(query), *map(on_cpu, keys[0]), scale=layer.scaling, enable_gqa=True
        )
        refuse_wrong(work(0), expected)
        return work, size, len(keys)

    return build


def sparse_size(context: int, batch: int) -> float:
    return math.inf if 4 * batch * 64 * context > MOST_PRODUCTS else batch * context * 2 * 128


def sparse_core(run: Run, context: int, batch: int, form: str) -> Built:
    """Indexer scores of 64 heads, the choice of 2048 keys, and 128 heads that read these."""
    layer = sparse_layer(8 if run.tiny else 2048)
    keys, latents = normal(run, batch, context, 128), normal(run, batch, context, RANK + ROPE)
    index_query, weights = normal(run, batch, 1, 64, 128), torch.rand(batch, 1, 64, device=run.device)
    query = normal(run, batch, 128, 1, RANK + ROPE) * 0.05
    parts = query.split((RANK, ROPE), dim=-1)
    topk = layer.config.index_topk
    read = read_in_place if form == "chosen" and kernel_suits(layer, latents) else read_gathered

    def work(_):
        at = top_positions(index_scores(index_query, keys, weights), topk).int()
        return read(layer, parts, (latents,), None, at)

    chosen = latents[-1:, top_positions(index_scores(index_query, keys, weights), topk)[-1, 0]]
    refuse_wrong(work(0), plain_multi_query((on_cpu(query),), (on_cpu(chosen),), RANK, layer.scaling)[0])
    return work, sparse_size(context, batch) + batch * topk * 2 * (RANK + ROPE), 1


def sparse_layer(topk: int):
    """A sparse attention layer of published widths, narrow elsewhere."""
    narrow = {"vocab_size": 8, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1, "q_lora_rank": 8}
    widths = {"kv_lora_rank": RANK, "qk_rope_head_dim": ROPE, "qk_nope_head_dim": 8, "v_head_dim": 8}
    heads = {"attention_type": "latent", "num_attention_heads": 128, "num_key_value_heads": 128}
    index = {"layer_types": ["indexed_attention"], "index_topk": topk, "index_n_heads": 2, "index_head_dim": 128}
    config = ZooConfig(**narrow, **widths, **heads, **index, attn_implementation="sdpa")
    return ZooForCausalLM(config).eval().model.layers[0].self_attn


def delta_size(context: int, batch: int) -> int:
    return 2 * 4 * batch * 32 * 128 * 128


def delta_core(run: Run, context: int, batch: int, form: str) -> Built:
    """One token of the gated delta rule, 32 heads of 128 × 128, whatever the context."""
    heads, width = (2, 8) if run.tiny else (32, 128)
    size = 2 * 4 * batch * heads * width * width
    states = [torch.randn(batch, heads, width, width, device=run.device) for _ in range(input_sets(run, size))]
    q, k, v = (normal(run, batch, 1, heads, width) for _ in range(3))
    beta, decay = torch.rand(batch, 1, heads, device=run.device), -torch.rand(batch, 1, heads, device=run.device)

    def work(i):
        if form == "plain":
            return delta_step(q, k, v, beta, decay, states[i], scale=width**-0.5, normalize=True)
        return delta_rule(q, k, v, beta, decay, states[i], normalize=True)

    return work, size, len(states)


# name -> (bytes that must be read of a context and a batch, what builds it)
CORES = {
    "mla": (latent_size, latent_core(128)),
    "mla 64 heads": (latent_size, latent_core(64)),
    "mla 16 heads": (latent_size, latent_core(16)),
    "gqa": (grouped_size, grouped_core()),
    "gqa masked": (grouped_size, grouped_core(masked=True)),
    "sliding": (lambda context, batch: grouped_size(1024, batch), grouped_core(window=1024)),
    "dsa": (sparse_size, sparse_core),
    "gdn": (delta_size, delta_core),
}
