"""Models of one layer with the head shapes of published ones, of both sides, and caches behind a long context."""

from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from benchmarks.models import their_config
from conversion.engine.config_bridge import import_config
from modeling_zoo import ZooForCausalLM
from modeling_zoo.cache_upgrade import upgrade_cache

from .harness import HALF, Run

SIDES = ("transformers", "zoo")
# Of benchmarks.models, which says what each stands for.
NAMES = ("mla", "gqa", "sliding", "dsa", "gdn", "moe")
# Tokens that a recurrence really reads to come to a state; its cache costs the same behind any number of them.
RECURRENT_PROMPT = 64


def one_layer(run: Run, side: str, name: str, **changes):
    """A model of random weights in bfloat16 on the device; `changes` are fields of its config."""
    config = their_config(name, run.tiny, **changes)
    with torch.device(run.device):
        if side == "zoo":
            model = ZooForCausalLM._from_config(import_config(config.to_dict()), dtype=HALF)
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=HALF)
    return model.to(run.device).eval()


def all_heads(run: Run, name: str) -> dict:
    """Fields that give latent attention all 128 heads of DeepSeek-V3, where one token is decoded."""
    return {} if run.tiny or name != "mla" else {"num_attention_heads": 128, "num_key_value_heads": 128}


def kept_model(run: Run, side: str, name: str, **changes):
    """`one_layer`, made once a process."""
    key = (side, name, *sorted(changes.items()))
    if key not in run.models:
        run.models[key] = one_layer(run, side, name, **changes)
    return run.models[key]


def new_cache(side: str, model, kind: str, length: int | None = None):
    """An empty cache, "dynamic", "static" (of `length` tokens) or, of zoo, "int8"."""
    config = model.config
    cache = StaticCache(config=config, max_cache_len=length) if kind == "static" else DynamicCache(config=config)
    return upgrade_cache(cache, config, quantized=kind == "int8") if side == "zoo" else cache


@torch.no_grad()
def filled_cache(run: Run, side: str, model, kind: str, context: int, batch: int):
    """A cache behind `context` tokens: random numbers where attention keeps them, a short prompt for recurrences."""
    cache, config = new_cache(side, model, kind, context + 64), model.config
    # What a layer keeps differs between sides and versions: two tokens show it.
    probe = new_cache(side, model, "dynamic")
    model(torch.zeros(1, 2, dtype=torch.long, device=run.device), past_key_values=probe, logits_to_keep=1)
    generator = torch.Generator(run.device).manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator, device=run.device, dtype=HALF)

    if "linear_attention" in (getattr(config, "layer_types", None) or []):
        prompt = torch.randint(config.vocab_size, (batch, min(RECURRENT_PROMPT, context)), device=run.device)
        model(prompt, past_key_values=cache, logits_to_keep=1)
        context -= prompt.shape[1]
    for index, layer in enumerate(probe.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not isinstance(keys, torch.Tensor) or keys.dim() != 4 or not context:
            continue
        cache.update(*(random(batch, part.shape[1], context, part.shape[3]) for part in (keys, values)), index)
        indexed = getattr(layer, "indexer_keys", None)
        if isinstance(indexed, torch.Tensor):
            cache.update_indexer(random(batch, context, indexed.shape[-1]), index)
    return cache


def decoder(
    run: Run, side: str, model, kind: str, context: int, batch: int, forward: Callable | None = None
) -> Callable:
    """A function that decodes one more token for each of `batch` rows behind `context` tokens and gives the logits."""
    cache = filled_cache(run, side, model, kind, context, batch)
    token = torch.randint(model.config.vocab_size, (batch, 1), device=run.device)
    position = torch.full((batch, 1), context, device=run.device)
    forward = forward or model

    def step(_=0):
        with torch.no_grad():
            return forward(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True).logits

    return step


# -- what has to be read and computed ----------------------------------------------------------------------------------


def cache_bytes(name: str, config) -> tuple[int, int]:
    """Bytes of the caches that one token must read: per cached token, and per row whatever the length."""
    if name == "mla":
        return 2 * (config.kv_lora_rank + config.qk_rope_head_dim), 0
    if name == "dsa":
        return 2 * config.index_head_dim, 2 * config.index_topk * (config.kv_lora_rank + config.qk_rope_head_dim)
    per_token = 4 * config.num_key_value_heads * config.head_dim
    if name == "sliding":
        return 0, per_token * config.sliding_window
    if name == "gdn":
        # Three layers with a float32 state, read and written.
        heads = config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim
        return per_token, 3 * 8 * heads
    return per_token, 0


def weight_bytes(model, batch: int) -> int:
    """Bytes of weights that a step must read: all but the table, of the experts those that are chosen."""
    total = 0
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            continue
        size = parameter.numel() * parameter.element_size()
        if ".experts." in name and parameter.dim() == 3:
            active = min(parameter.shape[0], batch * (getattr(model.config, "num_experts_per_tok", 0) or 1))
            size = size * active // parameter.shape[0]
        total += size
    return total


def prompt_flops(name: str, model, length: int) -> float:
    """Multiplications and additions of a prompt: linear maps, of the experts those chosen, and causal attention."""
    config, maps = model.config, 0
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "embed_tokens" in parameter_name or "lm_head" in parameter_name:
            continue
        size = parameter.numel()
        if ".experts." in parameter_name and parameter.dim() == 3:
            size = size * (getattr(config, "num_experts_per_tok", 0) or 1) // parameter.shape[0]
        maps += size
    if name in ("mla", "dsa"):
        pair = config.num_attention_heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
    else:
        pair = config.num_attention_heads * 2 * config.head_dim
    seen = length * length / 2
    if name == "sliding":
        seen = length * min(config.sliding_window, length)
    if name == "dsa":
        seen = min(seen, length * config.index_topk)
    return 2 * length * maps + 2 * seen * pair
