"""Short contexts, where every call counts and nothing is to be won: no model may lose."""

import torch

from .decode import tokens
from .measuring import Times, difference, in_turns, peak_memory, result
from .models import pair, their_config

LAYERS = 4
# Tokens decoded in a row, so that one measurement is long enough for the clock.
RUN = 8


@torch.no_grad()
def short(case: str, context: int, options) -> dict:
    """A prompt of `context` tokens, then some decoded behind it."""
    changes = {"num_hidden_layers": LAYERS, "hidden_size": 1024} | options.changes(case)
    if options.tiny:
        changes.pop("hidden_size", None)
    models = pair(case, options.dtype, options.device, options.tiny, **changes)
    vocabulary = their_config(case, options.tiny, **changes).vocab_size
    prompt, ahead = (tokens(count, vocabulary, options.device) for count in (context, RUN))

    def read(model):
        return model(prompt, use_cache=True)

    def run(model):
        cache, outputs = read(model).past_key_values, []
        for index in range(RUN):
            outputs.append(model(ahead[:, index : index + 1], past_key_values=cache).logits)
        return torch.cat(outputs, dim=1)

    prompts = {side: lambda model=model: read(model).logits for side, model in models.items()}
    runs = {side: lambda model=model: run(model) for side, model in models.items()}
    prefill, logits = in_turns(prompts, options.rounds, options.device)
    error = difference(logits["zoo"], logits["transformers"])
    whole, logits = in_turns(runs, options.rounds, options.device)
    error = max(error, difference(logits["zoo"], logits["transformers"]))
    # Of the decoded tokens alone: medians of both, taken in the same turns.
    times = Times({side: max(whole[side] - prefill[side], 1e-9) / RUN for side in models})
    times.cpu = {side: max(whole.cpu[side] - prefill.cpu[side], 1e-9) / RUN for side in models}
    memory = {side: peak_memory(work, options.device) for side, work in runs.items()}
    ahead_ratio = prefill["transformers"] / prefill["zoo"]
    by_processor = prefill.cpu["transformers"] / prefill.cpu["zoo"]
    said = f"ratio {ahead_ratio:.2f}, in processor time {by_processor:.2f}, zoo {prefill['zoo'] * 1e3:.2f} ms"
    notes = {"prefill": said}
    return result(
        "short", case, context, times, error, memory, notes=notes, prefill=ahead_ratio, prefill_cpu=by_processor
    )
