"""A step of training without its optimizer: forward and backward of whole models, time and memory."""

import torch

from .decode import tokens
from .measuring import alternate, difference, peak_memory, result
from .models import pair, their_config


def train(case: str, context: int, options) -> dict:
    """Median time and peak memory of loss and gradients over a row of `context` tokens, weights in float32; with a
    dtype of half precision under autocast. Compared are the gradients of the token table."""
    changes = options.changes(case)
    models = pair(case, torch.float32, options.device, options.tiny, **changes)
    row = tokens(context, their_config(case, options.tiny, **changes).vocab_size, options.device)
    half = options.dtype != torch.float32

    def step(model):
        model.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(options.device).type, options.dtype, enabled=half):
            loss = model(input_ids=row, labels=row, use_cache=False).loss
        loss.backward()
        return model.get_input_embeddings().weight.grad

    sides = {side: lambda model=model: step(model.train()) for side, model in models.items()}
    memory = {side: peak_memory(work, options.device) for side, work in sides.items()}
    times, gradients = alternate(sides, options.rounds, options.device)
    error = difference(gradients["zoo"], gradients["transformers"])
    notes = {"precision": f"autocast to {options.dtype}".replace("torch.", "") if half else "float32"}
    return result("train", case, context, times, error, memory, compared="gradients", notes=notes)
