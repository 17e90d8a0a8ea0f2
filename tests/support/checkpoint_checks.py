"""What a converted checkpoint is compared by: its tensors bit for bit, its config.json, its logits."""

import json
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import load_file

RELATIVE = 2e-5
# Variants whose own class lets padding into a recurrence (biases before a convolution): compared without any.
# That zoo's does not is tested in test_conversion_hybrid.py.
LEAKS_PADDING = {("lfm2", 1), ("lfm2_moe", 1), ("lfm3", 1), ("recurrent_gemma", 0), ("recurrent_gemma", 1)} | {
    ("bamba", 1), ("deepseek_v4", 0), ("deepseek_v4", 1), ("falcon_h1", 1), ("falcon_mamba", 1),
    ("granitemoehybrid", 1), ("jamba", 1), ("mamba", 1), ("mamba2", 1), ("minimax_m3_vl_text", 0),
    ("minimax_m3_vl_text", 1), ("nemotron_h", 1), ("zamba", 1), ("zamba2", 2),
}  # fmt: skip
# Families whose own class loses more digits in float32 than the tolerance has (1 - a² near a = 1): theirs in float64.
LOSES_DIGITS = {"recurrent_gemma"}


@torch.no_grad()
def noise(model, tokens):
    """How far a model's logits move, relative to the largest, where each weight is moved by one rounding: some
    recurrences make more of it than others, and no two orders of summation agree better."""
    other = deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in other.parameters():
        signs = torch.randint(2, parameter.shape, generator=generator) * 2 - 1
        parameter.mul_(1 + signs * torch.finfo(parameter.dtype).eps / 2)
    expected, found = (one(tokens, use_cache=False).logits for one in (model, other))
    return ((found - expected).abs().max() / expected.abs().max()).item()


def tensors_of(folder):
    tensors = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def assert_same_tensors(found, expected):
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype, name
        assert found[name].shape == expected[name].shape, name
        assert torch.equal(bits(found[name]), bits(expected[name])), name


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor


def assert_same_config(found, expected):
    found, expected = (json.loads((Path(folder) / "config.json").read_text()) for folder in (found, expected))
    assert found == expected


def batch(vocab_size, padding=4):
    """Two rows, the first of them left-padded."""
    tokens = torch.randint(1, vocab_size, (2, 13), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    tokens[0, :padding], mask[0, :padding] = 0, 0
    return {"input_ids": tokens, "attention_mask": mask}
