"""Attention without the rest of the model: one latent or sparse layer per token, sliding attention over a prompt."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding
from transformers.models.deepseek_v32 import DeepseekV32Config
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Attention

from configuration_zoo import ZooConfig
from modeling_zoo.attention_masks import build_masks
from modeling_zoo.cache_upgrade import upgrade_cache
from modeling_zoo.registry import make_mixers

from .decode import paired, random_states
from .measuring import alternate, difference, peak_memory, result, synchronize
from .models import COMMON, GROUPED, INDEXED, LATENT, LONG, TINY, TINY_MODELS

# Projections of the residual stream that cost the same in both.
SHARED = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj")
STREAM = 7168


@dataclass
class Side:
    """One of two modules with its cache, and the time its shared projections took."""

    module: torch.nn.Module
    cache: DynamicCache
    call: Callable
    device: str
    shared: float = 0.0
    started: float = 0.0
    times: dict = field(default_factory=lambda: {"layer": [], "step": []})
    output: torch.Tensor | None = None

    def watch(self) -> None:
        """Take the time of the shared projections."""

        def before(module, args):
            synchronize(self.device)
            self.started = time.perf_counter()

        def after(module, args, output):
            synchronize(self.device)
            self.shared += time.perf_counter() - self.started

        for name in SHARED:
            projection = getattr(self.module, name)
            projection.register_forward_pre_hook(before)
            projection.register_forward_hook(after)

    def step(self, states: torch.Tensor, position: int) -> None:
        """Decode one token `[B, 1, D]` into `output`."""
        self.shared, started = 0.0, time.perf_counter()
        self.output = self.call(self, states, position)
        synchronize(self.device)
        whole = time.perf_counter() - started
        self.times["layer"].append(whole)
        self.times["step"].append(whole - self.shared)


def modules(case: str, options):
    """transformers' attention and zoo's mixer with the same random weights: ((module, config), (module, config))."""
    sparse = case == "dsa"
    sizes = {**COMMON, "hidden_size": STREAM, **(INDEXED if sparse else LATENT)}
    sizes |= (TINY | TINY_MODELS[case]) if options.tiny else {}
    sizes |= options.changes(case)
    sizes.pop("head_dim", None)
    sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    known, kind = (DeepseekV32Config, DeepseekV32Attention) if sparse else (DeepseekV3Config, DeepseekV3Attention)
    config = known(**sizes, attn_implementation="sdpa")
    word = "indexed_attention" if sparse else "full_attention"
    ours = ZooConfig(**sizes, attention_type="latent", layer_types=[word], attn_implementation="sdpa")
    with torch.device("meta"):
        theirs, mixer = kind(config, 0), make_mixers(ours, 0)["self_attn"]
    theirs = theirs.to_empty(device=options.device).to(options.dtype).eval()
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        if "norm" in name:
            torch.nn.init.ones_(parameter)
    mixer.load_state_dict(theirs.state_dict(), assign=True)
    return (theirs, config), (mixer.eval(), ours)


def both_sides(case: str, context: int, options) -> dict[str, Side]:
    """The two modules behind the same random cache."""
    (theirs, their_config), (ours, our_config) = modules(case, options)
    rotary = DeepseekV3RotaryEmbedding(their_config).to(options.device)
    # sdpa gives the plain decoder no mask for one token; transformers' sparse layers always ask for one.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=options.device) if case == "dsa" else None

    def tables(states, position):
        return rotary(states, torch.tensor([[position]], device=options.device))

    def call_theirs(side, states, position):
        here = None if mask is None else mask.expand(-1, -1, -1, position + 1)
        rotation = tables(states, position)
        return theirs(states, position_embeddings=rotation, attention_mask=here, past_key_values=side.cache)[0]

    def call_ours(side, states, position):
        # The same angles, spread for channels that stay in pairs.
        rotation = (table.chunk(2, dim=-1)[0].repeat_interleave(2, -1) for table in tables(states, position))
        return ours(states, position_embeddings=tuple(rotation), past_key_values=side.cache)[0]

    keys, values, indexer = random_states(their_config, context, options.dtype, options.device)
    sides = {
        "transformers": Side(theirs, DynamicCache(config=their_config), call_theirs, options.device),
        "zoo": Side(ours, upgrade_cache(DynamicCache(config=our_config), our_config), call_ours, options.device),
    }
    for name, side in sides.items():
        side.cache.update(keys, paired(values) if name == "zoo" else values, 0)
        if indexer is not None:
            side.cache.update_indexer(indexer, 0)
    return sides


@torch.no_grad()
def step(case: str, context: int, options) -> dict:
    """One token through one layer at full width: all of it, and without the projections both have in common."""
    sides = both_sides(case, context, options)
    width = sides["zoo"].module.o_proj.out_features
    error, memory = 0.0, {}
    for turn in range(options.rounds + 1):
        generator = torch.Generator().manual_seed(turn)
        states = torch.randn(1, 1, width, generator=generator).to(options.device, options.dtype)
        for name, side in sides.items():
            if turn:
                side.step(states, context + turn)
            else:
                side.watch()
                memory[name] = peak_memory(partial(side.step, states, context), options.device)
        error = max(error, difference(sides["zoo"].output, sides["transformers"].output))
    times = {
        # The first turn warms up, unless it is the only one.
        kind: {name: median(side.times[kind][1:] or side.times[kind]) for name, side in sides.items()}
        for kind in ("layer", "step")
    }
    layer = times["layer"]["transformers"] / times["layer"]["zoo"]
    notes = {"whole layer": f"ratio {layer:.2f}, transformers {layer * times['layer']['zoo'] * 1e3:.1f} ms"}
    return result("step", case, context, times["step"], error, memory, notes=notes, layer=layer, compared="outputs")


@torch.no_grad()
def band(case: str, context: int, options) -> dict:
    """Sliding attention over a prompt, each with the mask its model makes, which is not timed."""
    fields = {**COMMON, **GROUPED, "sliding_window": 1024, "layer_types": ["sliding_attention"]}
    fields |= (TINY | TINY_MODELS["sliding"]) if options.tiny else {}
    fields |= options.changes("sliding")
    config = ZooConfig(**fields | {"max_position_embeddings": LONG}, attn_implementation="sdpa")
    mixer = make_mixers(config, 0)["self_attn"].eval()
    stream = torch.empty(1, context, config.hidden_size, device=options.device, dtype=options.dtype)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    query, key, value = (
        torch.randn(1, count, context, config.head_dim, device=options.device).to(options.dtype) for count in heads
    )
    square = create_sliding_window_causal_mask(config, stream, None, None)
    rule = build_masks(config, stream, None, None)["sliding_attention"]
    sides = {
        "transformers": lambda: sdpa_attention_forward(mixer, query, key, value, square, scaling=mixer.scaling)[0],
        "zoo": lambda: mixer.attend(query, key, value, rule)[0],
    }
    memory = {side: peak_memory(work, options.device) for side, work in sides.items()}
    times, outputs = alternate(sides, options.rounds, options.device, warm=True)
    error = difference(outputs["zoo"], outputs["transformers"])
    return result("attention", case, context, times, error, memory, compared="outputs")
