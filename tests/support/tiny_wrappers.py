"""Small random models of any wrapper that transformers has: the default configuration, its parts reduced.

The text model has odd, mutually different sizes; every other part has one or two layers, and narrow ones where its
class accepts that.
"""

import importlib
from contextlib import suppress
from copy import deepcopy

import torch
import transformers
from random_models import randomize
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from conversion.engine.registry import family_of, file_name, is_known

SIZES = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Layers of other parts, by any of the names they go by; and widths, which not every class lets be so small.
LAYERS = {
    "num_hidden_layers", "depth", "encoder_layers", "num_layers", "n_layers", "decoder_layers", "num_encoder_layers",
    "resampler_depth", "layers",
}  # fmt: skip
WIDTHS = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim"), 48),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim"), 40),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "num_heads", "num_key_value_heads"), 4),
    "num_filters": 4,
}
NOT_OURS = {
    "transformers_version", "architectures", "dtype", "_name_or_path", "id2label", "label2id", "layer_types",
}  # fmt: skip


def mrope(*section, **more):
    """A rotation by several positions, whose sections are halves of heads."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section)} | more}


EXPERTS = {"num_experts": 10, "num_experts_per_tok": 3, "moe_intermediate_size": 28}
ROUTED = {"n_routed_experts": 10, "num_experts_per_tok": 3, "moe_intermediate_size": 28}
MULTIPLIERS = {
    "embedding_multiplier": 12.0, "logits_scaling": 3.0, "residual_multiplier": 0.3, "attention_multiplier": 0.17,
}  # fmt: skip
# Text models without small variants of their own: what they have beside SIZES.
TEXT = {
    "qwen2_vl_text": mrope(1, 1, 2), "qwen2_5_vl_text": mrope(1, 1, 2), "qwen2_5_omni_text": mrope(1, 1, 2),
    "paddleocr_vl_text": {"head_dim": 12} | mrope(2, 2, 2), "qwen3_vl_text": {"head_dim": 12} | mrope(2, 2, 2),
    "qwen3_vl_moe_text": EXPERTS | {"head_dim": 12} | mrope(2, 2, 2), "qwen3_omni_moe_text": EXPERTS | mrope(1, 1, 2),
    "glm4v_text": mrope(1, 1, 2, partial_rotary_factor=1.0),
    "glm_ocr_text": {"head_dim": 12} | mrope(1, 1, 1, partial_rotary_factor=0.5),
    "glm4v_moe_text": ROUTED | {"head_dim": 12} | mrope(1, 1, 1, partial_rotary_factor=0.5),
    "hunyuan_vl_text": {"head_dim": 12} | mrope(2, 2, 2), "cosmos3_edge_text": {"head_dim": 12} | mrope(2, 2, 2),
    "deepseek_ocr2_text": ROUTED
    | {"n_shared_experts": 2, "mlp_layer_types": ["dense", "sparse", "sparse"], "routed_scaling_factor": 1.7},
    "ernie4_5_vl_moe_text": {
        "moe_num_experts": 10, "moe_k": 3, "moe_intermediate_size": [28, 20], "moe_num_shared_experts": 2,
    } | mrope(1, 1, 2),
    "step3p5": ROUTED
    | {
        "head_dim": 12, "share_expert_dim": 36, "num_sliding_attention_heads": 4, "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"], "swiglu_limits": [0.0, 0.3, 0.0],
        "swiglu_limits_shared": [0.4, 0.0, 0.6], "moe_router_scaling_factor": 1.7,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "granite4_vision_text": MULTIPLIERS, "granite_docling_text": MULTIPLIERS,
}  # fmt: skip
SPEECH = {"vision_start_token_id": 97, "audio_start_token_id": 96}
EYE = {
    "model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 3, "image_size": 28, "patch_size": 14,
}  # fmt: skip
# Fields of a wrapper without which it is not to be built, or large.
AROUND = {
    "cosmos3_edge": {"projector_hidden_size": 40},
    "gemma4": {
        "vision_config": {
            "model_type": "gemma4_vision", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8, "patch_size": 4,
            "position_embedding_size": 16,
        },
    },
    "gemma4_unified": {
        "vision_config": {"patch_size": 4, "mm_embed_dim": 24, "mm_posemb_size": 8, "output_proj_dims": 24},
        "audio_config": {"audio_embed_dim": 20},
    },
    "dots3_note": {
        "vision_config": {
            "adapter_in_dim": 48, "adapter_out_dim": 48, "mlp_layer_types": ["dense", "sparse"],
            "per_layer_config": {1: {"num_local_experts": 4}},
        },
        "audio_config": {"adapter_input_size": 48, "adapter_out_dim": 48},
    },
    "fun_asr_nano": {"adaptor_config": {"hidden_size": 48, "intermediate_size": 12}},
    "granite4_vision": {"deepstack_layer_map": [[0, 1]], "downsample_rate": "1/2"},
    "granite_docling": {"vision_config": {"out_hidden_size": 48}},
    "qwen2_5_omni": {"enable_audio_output": False}, "qwen3_omni_moe": {"enable_audio_output": False},
    "qwen2_5_omni_thinker": SPEECH, "qwen3_omni_moe_thinker": SPEECH,
}  # fmt: skip
# Towers that need a library which the tests have not, replaced by one that needs none.
REPLACED = {
    "fast_vlm": {"vision_config": EYE},
    "perception_lm": {"vision_config": EYE | {"model_args": {"embed_dim": 24}}},
}


def tiny_wrapper(name, text=None, **around):
    """transformers' own model of a wrapper with random weights; `text` and `around` are further fields of its text
    model, which may be another one by its `model_type`, and of itself."""
    said = []
    for class_name in classes_of(name):
        for narrow in (True, False):
            try:
                config = CONFIG_MAPPING[name](**_arguments(CONFIG_MAPPING[name](), narrow, text or {}) | around)
                model = getattr(transformers, class_name)(config).eval()
            except Exception as error:
                said.append(f"{class_name}: {error}")
                continue
            randomize(model)
            return model
    raise AssertionError(f"{name} could not be built small: {said}")


# One that classifies by the words that its text model would write next.
CLASSES = {"shieldgemma2": ["ShieldGemma2ForImageClassification"]}


def classes_of(name):
    """The classes that write text with a wrapper, as the auto classes or its own module name them."""
    if name in CLASSES:
        return CLASSES[name]
    mappings = [getattr(auto, key) for key in dir(auto) if key.startswith("MODEL_FOR_") and key.endswith("_NAMES")]
    found = [mapping[name] for mapping in mappings if isinstance(mapping.get(name), str)]
    config_class = CONFIG_MAPPING[name]
    with suppress(ModuleNotFoundError):
        module = importlib.import_module(config_class.__module__.replace("configuration", "modeling"))
        found += [one for one in dir(module) if getattr(getattr(module, one), "config_class", None) is config_class]
    endings = ("ForConditionalGeneration", "ForCausalLM", "Reasoning_V3", "ForRetrieval")
    return [one for one in dict.fromkeys(found) if one.endswith(endings) and "PreTrained" not in one]


def _arguments(default, narrow, text):
    """The fields of a wrapper's configuration, parts that hold a text model themselves likewise."""
    parts = {key: getattr(default, key, None) for key in default.sub_configs}
    found = {}
    for key, part in parts.items():
        if part is None:
            continue
        if key in ("thinker_config", "vlm_config"):
            found[key] = _arguments(part, narrow, text)
        elif key == "text_config":
            found[key] = _text_arguments(part, text.get("model_type", part.model_type)) | text
        else:
            found[key] = _reduced(part.to_dict(), narrow)
    for key, value in (AROUND.get(default.model_type, {})).items():
        found[key] = found.get(key, {}) | value if isinstance(value, dict) else value
    return found | deepcopy(REPLACED.get(default.model_type, {}))


def _text_arguments(default, name):
    if name not in TEXT and is_known(file_name(name)) and family_of(name).tiny:
        return TOKENS | dict(family_of(name).tiny[0]) | {"model_type": name}
    known = default.to_dict()
    sizes = {key: value for key, value in (SIZES | TOKENS).items() if key in known}
    return sizes | TEXT.get(name, {}) | {"model_type": name}


def _reduced(part, narrow):
    """One or two layers of each part, all else as it is; with `narrow` few channels, too."""
    found = {}
    for key, value in part.items():
        if isinstance(value, dict) and key.endswith("config"):
            found[key] = _reduced(value, narrow)
        elif key in LAYERS and isinstance(value, int):
            found[key] = min(value, 2)
        elif key == "depths" and isinstance(value, list):
            found[key] = [1] * len(value)
        elif narrow and key in WIDTHS and isinstance(value, int):
            found[key] = WIDTHS[key]
        elif key in ("deepstack_visual_indexes", "fullatt_block_indexes", "global_attn_indexes"):
            found[key] = [0]
        elif value is not None and key not in NOT_OURS:
            found[key] = value
    return found


@torch.no_grad()
def text_outputs(model, **inputs):
    """What transformers' model makes of text alone: logits, or the last hidden states where it has no head."""
    model = getattr(model, "thinker", model)
    if hasattr(model, "vlm"):
        return model.vlm.language_model(**inputs).last_hidden_state
    if "Blip" in type(model).__name__:
        model = model.language_model
    if "Classification" in type(model).__name__:
        model = model.model
    return model(**inputs).logits
