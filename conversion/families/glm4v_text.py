"""The text model of GLM-4.1V (Z.ai 2025, arXiv 2507.01006): GLM-4 whose queries, keys and values have biases."""

from dataclasses import replace

from .glm4 import FAMILY as GLM4
from .shared_common import LLAMA_FIELDS

FAMILY = replace(GLM4, fields=LLAMA_FIELDS, fixed=GLM4.fixed | {"attention_bias": True}, tiny=())
