"""From the last hidden states to logits."""

import torch


def shape_logits(logits, config):
    """logits / logits_scaling → cap · tanh(· / cap) → suppressed tokens at the smallest number, `[..., V]`.

    (Granite; Gemma 2; Chameleon's image tokens.)
    """
    if config.logits_scaling != 1.0:
        logits = logits / config.logits_scaling
    if config.final_logit_softcapping is not None:
        cap = config.final_logit_softcapping
        logits = torch.tanh(logits / cap) * cap
    if config.suppressed_token_ids:
        ids = torch.tensor(config.suppressed_token_ids, device=logits.device)
        logits = logits.index_fill(-1, ids, torch.finfo(logits.dtype).min)
    return logits
