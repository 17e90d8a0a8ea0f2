"""A whole prompt at once: whole models, time and memory."""

import torch

from .decode import tokens
from .measuring import Times, alternate, difference, peak_memory, result, seconds
from .models import pair, their_config


@torch.no_grad()
def prefill(case: str, context: int, options) -> dict:
    """Median time and peak memory, cache included, of a prompt of `context` tokens up to its last logits."""
    changes = options.changes(case)
    models = pair(case, options.dtype, options.device, options.tiny, **changes)
    prompt = tokens(context, their_config(case, options.tiny, **changes).vocab_size, options.device)
    sides = {
        side: lambda model=model: model(prompt, use_cache=True, logits_to_keep=1).logits
        for side, model in models.items()
    }
    # Memory first: what an allocator keeps for later runs would hide it. Without rounds, this run is the one timed.
    memory, spent, logits = {}, {}, {}
    for side, work in sides.items():

        def once(side=side, work=work):
            spent[side], logits[side] = seconds(work, options.device)

        memory[side] = peak_memory(once, options.device)
    times = Times({side: clock for side, (clock, _) in spent.items()})
    times.cpu = {side: processor for side, (_, processor) in spent.items()}
    if options.rounds:
        times, logits = alternate(sides, options.rounds, options.device, warm=True)
    notes = {}
    if all(memory.values()):
        notes["memory of zoo / transformers"] = f"{memory['zoo'] / memory['transformers']:.2f}"
    error = difference(logits["zoo"], logits["transformers"])
    return result("prefill", case, context, times, error, memory, notes=notes)
