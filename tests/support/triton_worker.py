"""Run by test_decode_kernels in a process of its own, in which triton interprets: prints {case: largest error}."""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402

from modeling_zoo.ops_attention_triton import split_decode  # noqa: E402


def exact(query, key, value, scaling, positions=None, visible=None):
    """The same, row by row, in float64."""
    output = torch.zeros(*query.shape[:3], value.shape[-1], dtype=torch.float64)
    for b in range(query.shape[0]):
        chosen = torch.arange(key.shape[2]) if positions is None else positions[b].long()
        for h in range(query.shape[1]):
            scores = query[b, h].double() @ key[b, h, chosen].double().T * scaling
            if visible is not None:
                scores = scores.masked_fill(~visible[b], -torch.inf)
            output[b, h] = torch.softmax(scores, -1) @ value[b, h, chosen].double()
    return output


def error(found, expected):
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


def latent(dtype=torch.float32, keys=83, **options):
    """18 heads over one latent of 20 channels and a rope key of 6, side by side in storage with room to spare."""
    storage = torch.randn(2, 1, keys + 9, 26).to(dtype)
    key = storage[:, :, 5 : 5 + keys]
    arguments = (torch.randn(2, 1, 18, 26).to(dtype), key, key[..., :20], 0.3)
    return arguments, options


def sparse():
    """The chosen rows alone, in no order, some of them hidden."""
    arguments, _ = latent()
    positions = torch.stack([torch.randperm(83)[:37] for _ in range(2)]).int()
    visible = torch.rand(2, 37) > 0.3
    return arguments, {"positions": positions, "visible": visible}


def sliding():
    """Three key heads with three queries each over a view of a ring, wider keys than values."""
    storage, values = torch.randn(2, 3, 60, 70), torch.randn(2, 3, 60, 33)
    return (torch.randn(2, 3, 3, 70), storage[:, :, 7:52], values[:, :, 7:52], 0.2), {}


def padded():
    arguments, options = latent()
    visible = torch.ones(2, 83, dtype=torch.bool)
    visible[1, :70] = False
    return arguments, {"visible": visible}


CASES = {
    "latent": lambda: (*latent(), {}),
    "latent in one split": lambda: (*latent(), {"splits": 1}),
    "latent in many splits": lambda: (*latent(), {"splits": 50}),
    "latent, one key": lambda: (*latent(keys=1), {}),
    "latent in float16": lambda: (*latent(torch.float16), {}),
    "sparse": lambda: (*sparse(), {}),
    "sparse in splits": lambda: (*sparse(), {"splits": 2}),
    "sliding": lambda: (*sliding(), {}),
    "padded": lambda: (*padded(), {"splits": 3}),
}

if __name__ == "__main__":
    torch.manual_seed(0)
    found = {}
    for name, make in CASES.items():
        arguments, options, forced = make()
        with torch.no_grad():
            found[name] = error(split_decode(*arguments, **options, **forced), exact(*arguments, **options))
    json.dump(found, sys.stdout)
