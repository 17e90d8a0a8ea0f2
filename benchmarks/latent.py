"""Latent and sparse attention: zoo's mixer against transformers' attention on the same weights, one token at a time.

    python benchmarks/latent.py mla --context 8192
    python benchmarks/latent.py dsa --context 32768 --rounds 2

Both modules are built at full width, share their weights, and decode behind a cache of random latents. Turns alternate,
medians count. "layer" is the whole module, "step" what is left of it without the projections that both have in common.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache
from transformers.models.deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding
from transformers.models.deepseek_v32 import DeepseekV32Config
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Attention
from transformers.utils import logging

from configuration_zoo import ZooConfig
from modeling_zoo.caches import upgrade_cache
from modeling_zoo.mixers import make_mixer

# One layer of DeepSeek-V3 and V3.2 (arXiv 2412.19437 and 2512.02556).
WIDTHS = {
    "hidden_size": 7168, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "num_hidden_layers": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "rope_interleave": True, "vocab_size": 128, "max_position_embeddings": 163840,
}  # fmt: skip
INDEXER = {"index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128}
# Projections of the stream that cost the same in both.
COMMON = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj")


@dataclass
class Side:
    """One of the two modules with its cache, and the time its common projections took."""

    module: torch.nn.Module
    cache: DynamicCache
    call: Callable
    common: float = 0.0
    started: float = 0.0
    times: dict = field(default_factory=lambda: {"layer": [], "step": []})

    def watch(self):
        """Takes the time of the common projections."""

        def before(module, args):
            self.started = time.perf_counter()

        def after(module, args, output):
            self.common += time.perf_counter() - self.started

        for name in COMMON:
            projection = getattr(self.module, name)
            projection.register_forward_pre_hook(before)
            projection.register_forward_hook(after)

    def step(self, states, position):
        """Decodes one token `[B, 1, D]`; returns the module's output."""
        self.common, started = 0.0, time.perf_counter()
        output = self.call(self, states, position)
        whole = time.perf_counter() - started
        self.times["layer"].append(whole)
        self.times["step"].append(whole - self.common)
        return output


def modules(sparse: bool, heads: int, dtype: torch.dtype, backend: str):
    """transformers' attention and zoo's mixer with the same random weights, and their configs."""
    sizes = {**WIDTHS, "num_attention_heads": heads, **(INDEXER if sparse else {})}
    known, kind = (DeepseekV32Config, DeepseekV32Attention) if sparse else (DeepseekV3Config, DeepseekV3Attention)
    config = known(**sizes, num_key_value_heads=heads, attn_implementation=backend)
    word = "indexed_attention" if sparse else "full_attention"
    ours = ZooConfig(**sizes, attention_type="latent", layer_types=[word], attn_implementation=backend)
    with torch.device("meta"):
        theirs, mixer = kind(config, 0), make_mixer(ours, 0)
    theirs = theirs.to_empty(device="cpu").to(dtype).eval()
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        if "norm" in name:
            torch.nn.init.ones_(parameter)
    mixer.load_state_dict(theirs.state_dict(), assign=True)
    return (theirs, config), (mixer.eval(), ours)


def filled(cache, context: int, sparse: bool, dtype: torch.dtype, paired: bool):
    """The cache behind `context` tokens with random latents, rope keys and indexer keys.

    Rotated channels stay in pairs where zoo caches them (`paired`), in two halves where transformers does.
    """
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    latent, rope_key = random(1, 1, context, WIDTHS["kv_lora_rank"]), random(1, 1, context, WIDTHS["qk_rope_head_dim"])
    if paired:
        rope_key = rope_key.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    cache.update(latent, rope_key, 0)
    if sparse:
        cache.update_indexer(random(1, context, INDEXER["index_head_dim"]), 0)
    return cache


@torch.no_grad()
def decode(sparse=False, heads=64, context=8192, rounds=5, dtype=torch.bfloat16, backend="sdpa") -> dict:
    """Medians in seconds, ratios, and the largest relative difference of the outputs, of one decoded token."""
    (theirs, their_config), (ours, our_config) = modules(sparse, heads, dtype, backend)
    rotary = DeepseekV3RotaryEmbedding(their_config)
    # sdpa gives the plain decoder no mask for one token; transformers' sparse layers always ask for one.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool) if sparse else None

    def call_theirs(side, states, position):
        here = None if mask is None else mask.expand(-1, -1, -1, position + 1)
        rotation = rotary(states, torch.tensor([[position]]))
        return theirs(states, position_embeddings=rotation, attention_mask=here, past_key_values=side.cache)[0]

    def call_ours(side, states, position):
        # The same angles, spread for channels that stay in pairs.
        tables = rotary(states, torch.tensor([[position]]))
        rotation = (table.chunk(2, dim=-1)[0].repeat_interleave(2, -1) for table in tables)
        return ours(states, position_embeddings=tuple(rotation), past_key_values=side.cache)[0]

    caches = DynamicCache(config=their_config), upgrade_cache(DynamicCache(config=our_config), our_config)
    caches = [filled(cache, context, sparse, dtype, paired) for paired, cache in enumerate(caches)]
    sides = {"transformers": Side(theirs, caches[0], call_theirs), "zoo": Side(ours, caches[1], call_ours)}
    for side in sides.values():
        side.watch()
    difference = 0.0
    for turn in range(rounds + 1):
        states = torch.randn(1, 1, WIDTHS["hidden_size"], generator=torch.Generator().manual_seed(turn)).to(dtype)
        expected, found = (side.step(states, context + turn).float() for side in sides.values())
        difference = max(difference, ((found - expected).abs().max() / expected.abs().max()).item())
    # The first turn warms up.
    medians = {
        kind: {name: statistics.median(side.times[kind][1:] or side.times[kind]) for name, side in sides.items()}
        for kind in ("layer", "step")
    }
    ratios = {kind: times["transformers"] / times["zoo"] for kind, times in medians.items()}
    return {"context": context, "seconds": medians, "ratio": ratios, "difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=("mla", "dsa"))
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=None, help="64 for mla, 128 for dsa when left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    sparse = options.case == "dsa"
    heads = options.heads or (128 if sparse else 64)
    result = decode(sparse, heads, options.context, options.rounds, getattr(torch, options.dtype))
    for kind, times in result["seconds"].items():
        theirs, ours = (1000 * times[name] for name in ("transformers", "zoo"))
        print(f"{kind}: transformers {theirs:.1f} ms, zoo {ours:.1f} ms, ratio {result['ratio'][kind]:.1f}")
    print(f"largest relative difference of the outputs: {result['difference']:.1e}")


if __name__ == "__main__":
    main()
