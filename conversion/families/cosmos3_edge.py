"""Cosmos 3 Edge, the reasoner (NVIDIA 2026): Llama with a squared ReLU under the names of Diffusers; a generator beside
it is kept, too."""

from ..engine.wrappers import around
from .cosmos3_omni import ATTENTION

FAMILY = around("cosmos3_edge", "cosmos3_edge_text", rules=ATTENTION)
