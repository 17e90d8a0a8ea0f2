"""Every mixer, with every cache, backend, form and dtype, and compiled, against a CPU in float32."""

import math
from collections.abc import Callable
from functools import partial

import torch

from modeling_zoo import ZooForCausalLM

from .forms import has_triton, plain_forms
from .harness import HALF, Item, Run, attempt, relative_error
from .mixers import CHOOSING, backends_of, chosen, config_of, random_model
from .models import new_cache

# Largest ‖difference‖ / ‖reference‖; for a mixer that chooses among keys or experts, in bfloat16; for a cache in int8.
LIMITS = {torch.float32: 2e-3, HALF: 6e-2}
CHOOSING_LIMIT, INT8_LIMIT = 0.5, 0.15
PROMPT, LENGTH, CACHE = 32, 40, 48


def tokens_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows `[2, 40]`, the second padded at its left."""
    tokens = torch.randint(3, 128, (2, LENGTH), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    return tokens, mask


@torch.no_grad()
def reference(fields: dict, padded: bool = True) -> tuple[torch.Tensor, dict]:
    """Logits `[2, 8, V]` of the last tokens by one forward on the CPU in float32, and the weights."""
    tokens, mask = tokens_and_mask()
    model = random_model(fields, "eager" if fields.get("index_topk") else None)
    return model(tokens, attention_mask=mask if padded else None).logits[:, PROMPT:], model.state_dict()


# -- in eager mode -----------------------------------------------------------------------------------------------------


def items(run: Run) -> list[Item]:
    return [
        Item(name, lambda name=name, fields=fields: all_ways(run, name, fields), needs=2)
        for name, fields in chosen(run.options.mixers).items()
    ]


def all_ways(run: Run, name: str, fields: dict) -> dict:
    """The error of each way to the same logits, and those beyond their limit."""
    expected, weights = reference(fields)
    found, bad = {}, {}
    for way, (limit, work) in ways(run, name, fields, weights).items():
        one = attempt(lambda work=work: {"difference": relative_error(work(), expected)})
        found[way] = one.get("difference", one.get("error"))
        if isinstance(found[way], str) or found[way] > limit:
            bad[way] = found[way]
    numbers = [value for value in found.values() if not isinstance(value, str)]
    return {"ways": len(found), "worst": max(numbers, default=math.inf), "bad": bad, "met": not bad, "all": found}


def ways(run: Run, name: str, fields: dict, weights: dict) -> dict[str, tuple[float, Callable]]:
    """{dtype, backend, cache and form: (limit, how to get the logits on the device)}."""
    found, models = {}, {}

    def model_of(dtype, backend):
        if (dtype, backend) not in models:
            model = ZooForCausalLM(config_of(fields, backend)).eval()
            model.load_state_dict(weights)
            models[dtype, backend] = model.to(run.device, dtype)
        return models[dtype, backend]

    for dtype in (torch.float32, HALF):
        for backend in backends_of(fields):
            for kind in ("none", "dynamic", "static", "int8"):
                if dtype == HALF and backend == "eager" and kind != "dynamic":
                    continue
                limit = max(limit_of(name, dtype), INT8_LIMIT if kind == "int8" else 0.0)
                has_kernel = run.cuda and has_triton() and backend == "sdpa" and kind in ("dynamic", "static")
                for form in ("chosen", "plain") if has_kernel else ("chosen",):
                    way = f"{str(dtype)[6:]} {backend} {kind}{'' if form == 'chosen' else ' plain'}"
                    found[way] = limit, partial(logits_by, run, model_of, dtype, backend, kind, form)
    return found


def limit_of(name: str, dtype: torch.dtype) -> float:
    """The largest relative error of a mixer in this dtype."""
    return CHOOSING_LIMIT if dtype == HALF and name in CHOOSING else LIMITS[dtype]


def logits_by(run: Run, model_of: Callable, dtype, backend: str, kind: str, form: str) -> torch.Tensor:
    """The logits by one of the ways."""
    model = model_of(dtype, backend)
    if form == "chosen":
        return decoded(run, model, kind)
    with plain_forms():
        return decoded(run, model, kind)


@torch.no_grad()
def decoded(run: Run, model, kind: str) -> torch.Tensor:
    """The last 8 logits: without a cache at once, else a prompt in two parts, then token by token."""
    tokens, mask = (part.to(run.device) for part in tokens_and_mask())
    if kind == "none":
        return model(tokens, attention_mask=mask).logits[:, PROMPT:]
    cache = new_cache("zoo", model, kind, CACHE)
    for start, stop in ((0, 21), (21, PROMPT)):
        model(tokens[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache)
    steps = [
        model(tokens[:, i : i + 1], attention_mask=mask[:, : i + 1], past_key_values=cache).logits
        for i in range(PROMPT, LENGTH)
    ]
    return torch.cat(steps, dim=1)
