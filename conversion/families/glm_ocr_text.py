"""The text model of GLM-OCR (Z.ai 2026): GLM-4 without biases."""

from dataclasses import replace

from .glm4v_text import FAMILY as GLM4V

FAMILY = replace(GLM4V, fixed=GLM4V.fixed | {"attention_bias": False, "attention_out_bias": False})
