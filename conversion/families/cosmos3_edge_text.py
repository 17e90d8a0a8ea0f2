"""The text model of Cosmos 3 Edge (NVIDIA 2026): Llama with a squared ReLU and no gate."""

from dataclasses import replace

from .llama import FAMILY as LLAMA

FAMILY = replace(
    LLAMA,
    fixed={"gated_mlp": False},
    tiny=(),
)
