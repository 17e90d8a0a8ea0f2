"""What every accepted config must do, checked on a model of it: used by the rows and by the random configs."""

import pytest
import torch


def check_backward(model, tokens):
    model.train()
    loss = model(tokens, labels=tokens).loss
    assert torch.isfinite(loss), f"a loss of {loss}"
    loss.backward()
    # An indexer selects; only its own loss teaches it. All tokens may go to experts that cost nothing.
    idle = [] if model.config.indexer_loss_coef else [".indexer."]
    around = [".experts.", ".fc1_latent_proj.", ".fc2_latent_proj."]
    idle += around if any(layer.zero_expert_num for layer in model.config.per_layer_config) else []
    taught = [name for name, _ in model.named_parameters() if not any(part in name for part in idle)]
    # The indexers of layers that predict further tokens are not in that loss, as their routers are in no balance loss.
    taught = [name for name in taught if not (name.startswith("mtp.") and ".indexer." in name)]
    without = [name for name in taught if model.get_parameter(name).grad is None]
    assert without == [], f"no gradient reaches {without}"
    model.eval()


@torch.no_grad()
def rounding(model, tokens, expected):
    """How far the logits move when the embeddings are rounded otherwise: three draws of one unit in the last place."""
    weight, found = model.get_input_embeddings().weight, []
    kept = weight.clone()
    for seed in range(3):
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        weight.copy_(kept * (1 + torch.finfo(torch.float32).eps * noise))
        found.append((model(tokens).logits - expected).abs().max().item())
    weight.copy_(kept)
    return max(found)


def check_same(model, tokens, found, expected, how):
    """Equal in float32: to 2e-5 of the largest logit, no less than of 10, and what the draw makes of rounding."""
    atol = 2e-5 * max(10.0, expected.abs().max().item())
    if not torch.allclose(found, expected, rtol=2e-4, atol=atol):
        atol += 4 * rounding(model, tokens, expected)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=atol, msg=lambda text: f"{how}: {text}")


def check_pieces(model, tokens, expected, sizes, how):
    """Pieces of these sizes over a cache equal all at once."""
    cache, found, start = None, [], 0
    for size in sizes:
        outputs = model(tokens[:, start : start + size], past_key_values=cache, use_cache=True)
        cache, start = outputs.past_key_values, start + size
        found.append(outputs.logits)
    check_same(model, tokens, torch.cat(found, 1), expected, how)


def check_steps(model, tokens, expected):
    """One token at a time over a cache equals all at once."""
    check_pieces(model, tokens, expected, [1] * tokens.shape[1], "steps")


def check_chunks(model, tokens, expected):
    """Chunks of any size over a cache equal all at once."""
    check_pieces(model, tokens, expected, (4, 1, tokens.shape[1] - 5), "chunks")


def check_padding(model, tokens, expected):
    """Four tokens of padding on the left change nothing."""
    padded = torch.cat((torch.zeros(2, 4, dtype=torch.long), tokens), dim=1)
    mask = (torch.arange(padded.shape[1]) >= 4).long().expand(2, -1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = model(padded, attention_mask=mask, position_ids=positions).logits[:, 4:]
    check_same(model, tokens, found, expected, "padding")


def check_packed(model, tokens, expected):
    """Both rows end to end, told apart by their positions, are what they are apart, or are refused where windows of
    tokens are compressed."""
    positions = torch.arange(tokens.shape[1]).repeat(len(tokens))[None]
    if any("compressed" in layer_type for layer_type in model.config.layer_types):
        with pytest.raises(ValueError, match="Packed sequences cannot be compressed"):
            model(tokens.view(1, -1), position_ids=positions, use_cache=False)
        return
    found = model(tokens.view(1, -1), position_ids=positions, use_cache=False).logits
    check_same(model, tokens, found.view(expected.shape), expected, "packed")
