"""Short contexts, where every call counts and nothing is to be won: no model may lose."""

import statistics

import torch

from .decode import tokens
from .limit import limit
from .measuring import Times, difference, peak_memory, result, seconds
from .models import pair, their_config

LAYERS = 4
# Tokens decoded in a row, so that one measurement is long enough for the clock.
RUN = 8


def read_and_run(model, prompt, ahead, device):
    """Reads `prompt`, then decodes `ahead` token by token → (seconds of both, logits of both)."""
    first, output = seconds(lambda: model(prompt, use_cache=True), device)
    cache = output.past_key_values

    def run():
        steps = range(ahead.shape[1])
        return [model(ahead[:, at : at + 1], past_key_values=cache).logits for at in steps]

    later, logits = seconds(run, device)
    return (first, later), torch.cat([output.logits, *logits], dim=1)


def medians(taken: dict, part: int, count: int = 1) -> Times:
    """Per side the medians of one part of what `read_and_run` took, for each of `count` tokens."""
    times = Times({side: statistics.median(one[part][0] for one in found) / count for side, found in taken.items()})
    times.cpu = {side: statistics.median(one[part][1] for one in found) / count for side, found in taken.items()}
    return times


@torch.no_grad()
def short(case: str, context: int, options) -> dict:
    """A prompt of `context` tokens, then some decoded behind it."""
    changes = {"num_hidden_layers": LAYERS, "hidden_size": 1024} | options.changes(case)
    if options.tiny:
        changes.pop("hidden_size", None)
    models = pair(case, options.dtype, options.device, options.tiny, **changes)
    vocabulary = their_config(case, options.tiny, **changes).vocab_size
    prompt, ahead = (tokens(count, vocabulary, options.device) for count in (context, RUN))
    sides = {
        side: lambda model=model: read_and_run(model, prompt, ahead, options.device) for side, model in models.items()
    }
    taken, logits = {side: [] for side in sides}, {}
    for turn in range(options.rounds + 1):
        # The order is reversed from round to round; the first does not count.
        for side in list(sides)[:: 1 if turn % 2 else -1]:
            spent, logits[side] = sides[side]()
            taken[side] += [spent] if turn else []
    prefill, times = medians(taken, 0), medians(taken, 1, RUN)
    memory = {side: peak_memory(work, options.device) for side, work in sides.items()}
    ahead_ratio = prefill["transformers"] / prefill["zoo"]
    by_processor = prefill.cpu["transformers"] / prefill.cpu["zoo"]
    said = f"ratio {ahead_ratio:.2f}, in processor time {by_processor:.2f}, zoo {prefill['zoo'] * 1e3:.2f} ms"
    error = difference(logits["zoo"], logits["transformers"])
    more = {"limit": limit(models["zoo"].config, context + RUN // 2, times, options.device)}
    more |= {"notes": {"prefill": said}, "prefill": ahead_ratio, "prefill_cpu": by_processor}
    return result("short", case, context, times, error, memory, **more)
