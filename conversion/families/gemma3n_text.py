"""Gemma 3n (Google 2025), text of E2B and E4B: Gemma 3 over four residual streams of which each layer computes one
(AltUp), with a low-rank map beside attention (LAuReL), MLPs whose first layers silence most channels, keys and values
shared by the last layers, and an embedding per layer."""

from collections.abc import Callable
from functools import partial
from math import sqrt

import torch

from ..engine.family import Family, Keys, Ours, Theirs, restore_rope, rope
from ..engine.rules import Keep, Rule, renames
from .gemma2 import FIELDS as GEMMA2
from .gemma2 import NORMS
from .shared_common import ROPE_BUFFERS, restore_window, tiny, window_fields
from .shared_gemma4 import LAYER, LAYER_ROWS, MODEL_ROWS, SMALL, UNUSED

SPARSITY = "swiglu_config.activation_sparsity"
STREAMS = {name: f"block_config.{name}" for name in ("laurel_rank", "altup_num_inputs", "altup_active_idx")}
CLIP, SCALE = "altup_coef_clip", "altup_correct_scale"
ROWS = ("hidden_size_per_layer_input", "vocab_size_per_layer_input", "num_kv_shared_layers")


def derive(theirs: Theirs) -> Keys:
    widths = zip(theirs.intermediate_size, theirs.activation_sparsity_pattern, strict=True)
    layers = [{"intermediate_size": width, SPARSITY: share or None} for width, share in widths]
    differing = {index: one for index, one in enumerate(layers) if one != layers[0]}
    fields = layers[0] | ({"per_layer_config": differing} if differing else {}) | window_fields(theirs)
    fields |= {"rope_parameters": rope(theirs), "embedding_multiplier": sqrt(theirs.hidden_size)}
    return fields | {
        f"block_config.{CLIP}": theirs.altup_coef_clip,
        f"block_config.{SCALE}": theirs.altup_correct_scale,
    }


def restore(ours: Ours) -> Keys:
    layers = ours.per_layer_config
    keys = {"intermediate_size": [layer.intermediate_size for layer in layers]}
    keys["activation_sparsity_pattern"] = [layer.swiglu_config["activation_sparsity"] or 0.0 for layer in layers]
    keys |= {CLIP: ours.block_config[CLIP], SCALE: ours.block_config[SCALE], "rope_parameters": restore_rope(ours)}
    return keys | restore_window(ours)


def buffers(ours: Ours, raw: Keys) -> dict[str, Callable]:
    """Scales that nothing reads, which transformers' class has nevertheless."""
    layers = () if ours.block_config[SCALE] else range(ours.num_hidden_layers)
    return {f"model.layers.{i}.altup.correct_output_scale": partial(torch.zeros, ours.hidden_size) for i in layers}


FAMILY = Family(
    fields={name: ours for name, ours in GEMMA2.items() if name != "intermediate_size"}
    | STREAMS
    | {name: name for name in ROWS},
    fixed={
        "block_type": "altup", "precision.norm": "scale_then_cast", "qk_norm": "rms_norm", "value_norm": True,
        "attention_multiplier": 1.0, "precision.embedding_multiplier_in_weight_dtype": True,
    },
    derive=derive,
    restore=restore,
    buffers=buffers,
    rules=[
        UNUSED,
        Keep(LAYER + "altup.correct_output_scale", lambda ctx: not ctx.config.block_config[SCALE]),
        *renames(NORMS),
        *ROPE_BUFFERS,
        Rule("model.{altup_projections|altup_unembed_projections}.{n}.weight",
             "model.hc_head.{altup_projections|altup_unembed_projections}.{n}.weight"),
        *(Rule(f"model.{name}.weight", f"model.per_layer_embeddings.{name}.weight") for name in MODEL_ROWS),
        Rule(LAYER + "altup.correct_output_scale", LAYER + "per_layer_input.correct_output_scale"),
        *(Rule(LAYER + f"{name}.weight", LAYER + f"per_layer_input.{name}.weight") for name in LAYER_ROWS),
    ],
    tiny=[
        tiny(**SMALL | {"head_dim": 12, "global_head_dim": ...}, sliding_window=5, laurel_rank=7, altup_num_inputs=3,
             num_kv_shared_layers=2, activation_sparsity_pattern=[0.9, 0.6, 0.0, 0.0, 0.0]),
        tiny(**SMALL | {"head_dim": 12, "global_head_dim": ...}, sliding_window=4, laurel_rank=5, altup_active_idx=1,
             num_kv_shared_layers=0, altup_correct_scale=False, attention_bias=True, tie_word_embeddings=False,
             intermediate_size=[80, 80, 72, 64, 64], final_logit_softcapping=9.0,
             activation_sparsity_pattern=[0.0, 0.7, 0.7, 0.0, 0.95]),
    ],
)  # fmt: skip
