"""Multimodal models around a text model that zoo knows."""

import transformers
from random_models import randomize

from conversion.families.llama4_text import FAMILY as LLAMA4
from conversion.families.ministral3 import YARN
from conversion.families.mistral4 import ROPE as MISTRAL4_ROPE
from conversion.families.qwen3_5_moe_text import TINY as SPARSE
from conversion.families.qwen3_5_text import OTHER_LAYERS
from conversion.families.shared_common import tiny
from conversion.families.shared_experts import tiny_experts
from conversion.families.shared_gemma4 import SMALL as SMALL_GEMMA4
from conversion.families.shared_gemma4 import TINY as TINY_GEMMA4
from conversion.families.shared_gpt import TINY_PLAIN
from conversion.families.shared_latent import tiny_v3
from conversion.families.shared_linear import TINY_DELTA

VISION = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
PIXTRAL = VISION | {"model_type": "pixtral"}
CODEBOOK = {
    "codebook_size": 16, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "hidden_size": 32,
    "attn_resolutions": [],
}  # fmt: skip
PERSIMMON = TINY_PLAIN | {"model_type": "persimmon", "intermediate_size": 80, "max_position_embeddings": 64}
TALL = {
    "depth": 2, "hidden_size": 24, "intermediate_size": 40, "num_heads": 3, "patch_size": 14, "out_hidden_size": 48,
    "num_position_embeddings": 16,
}  # fmt: skip
PICTURES = {"vision_config": TALL, "image_token_id": 99, "video_token_id": 98}
LLAMA4_VISION = VISION | {
    "vision_output_dim": 24, "projector_input_dim": 24, "projector_output_dim": 24, "pixel_shuffle_ratio": 0.5,
}  # fmt: skip
GEMMA4 = TINY_GEMMA4 | SMALL_GEMMA4
CONDITIONAL, CAUSAL = "ForConditionalGeneration", "ForCausalLM"
# Case, beginning with the family -> transformers' classes, arguments of the config.
WRAPPED = {
    "emu3": (
        "Emu3", CONDITIONAL,
        {
            "text_config": tiny(head_dim=..., pad_token_id=0), "vq_config": CODEBOOK,
            "vocabulary_map": {"<image>": 99, "<|visual token 000001|>": 98},
        },
    ),
    "fuyu": ("Fuyu", CAUSAL, {"text_config": PERSIMMON | {"rope_theta": 500.0}, "patch_size": 3}),
    "gemma3": (
        "Gemma3", CONDITIONAL,
        {
            "text_config": tiny(num_hidden_layers=6, sliding_window=5, query_pre_attn_scalar=7),
            "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 99, "boi_token_index": 97,
            "eoi_token_index": 98,
        },
    ),
    "gemma4": (
        "Gemma4", CONDITIONAL,
        {
            "text_config": tiny(**GEMMA4, use_double_wide_mlp=True, num_kv_shared_layers=3), "audio_config": None,
            "vision_config": VISION | {"head_dim": 8, "num_key_value_heads": 3, "model_type": "gemma4_vision"},
            "image_token_id": 99, "video_token_id": 98, "audio_token_id": 97,
        },
    ),
    "llama4": (
        "Llama4", CONDITIONAL,
        {"text_config": LLAMA4.tiny[0], "vision_config": LLAMA4_VISION, "image_token_index": 99},
    ),
    "mistral3": (
        "Mistral3", CONDITIONAL,
        {
            "text_config": tiny(model_type="mistral", sliding_window=5), "vision_config": PIXTRAL,
            "tie_word_embeddings": False,
        },
    ),
    "mistral3, Mistral 4's text model": (
        "Mistral3", CONDITIONAL,
        {
            "text_config": tiny_v3(model_type="mistral4", first_k_dense_replace=1, rope_parameters=MISTRAL4_ROPE),
            "vision_config": PIXTRAL, "tie_word_embeddings": False,
        },
    ),
    "mistral3, Ministral's text model": (
        "Mistral3", CONDITIONAL,
        {
            "text_config": tiny(model_type="ministral3", rope_parameters=YARN, tie_word_embeddings=True),
            "vision_config": PIXTRAL,
        },
    ),
    "qwen3_5": ("Qwen3_5", CONDITIONAL, {"text_config": tiny(**TINY_DELTA | OTHER_LAYERS), **PICTURES}),
    "qwen3_5_moe": ("Qwen3_5Moe", CONDITIONAL, {"text_config": tiny_experts(**SPARSE), **PICTURES}),
}  # fmt: skip


def save_wrapped(case, folder):
    """A model of (transformers' classes, arguments of its config) with random weights, as transformers saves it."""
    prefix, suffix, arguments = case
    config = getattr(transformers, prefix + "Config")(**arguments, attn_implementation="eager")
    theirs = getattr(transformers, prefix + suffix)._from_config(config).eval()
    randomize(theirs)
    theirs.save_pretrained(folder)
