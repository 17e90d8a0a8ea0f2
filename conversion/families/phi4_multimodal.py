"""Phi-4-multimodal (Abouelenin et al. 2025, arXiv 2503.01743), as text: Phi-3; its towers are set aside."""

from dataclasses import replace

from ..engine.rules import Keep
from .phi3 import FAMILY as PHI3
from .phi3 import LONG
from .shared_common import tiny

EYE = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 28,
    "crop_size": 28,
}  # fmt: skip
EAR = {
    "hidden_size": 24, "intermediate_size": 40, "num_blocks": 3, "num_attention_heads": 3, "input_size": 16,
    "ext_pw_out_channel": 24, "depthwise_separable_out_channel": 24, "nemo_conv_channels": 8, "bias_max_distance": 8,
}  # fmt: skip
TOWERS = {"vision_config": EYE, "audio_config": EAR}

FAMILY = replace(
    PHI3,
    reads="phi4_multimodal",  # a checkpoint is more than the text model
    rules=[Keep("model.embed_tokens_extend.{*}"), *PHI3.rules],
    tiny=[
        tiny(**TOWERS, pad_token_id=0, head_dim=..., sliding_window=5, tie_word_embeddings=True),
        tiny(
            **TOWERS, pad_token_id=0, head_dim=..., partial_rotary_factor=0.75, original_max_position_embeddings=12,
            rope_parameters=LONG | {"original_max_position_embeddings": 12},
        ),
    ],
)  # fmt: skip
