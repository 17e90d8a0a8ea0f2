"""Multimodal models without a family of their own, around a text model that zoo knows: text exact, all of it back."""

import json

import pytest
import torch
import transformers
from checkpoint_checks import assert_same_tensors, tensors_of
from random_models import randomize
from samples import only

from conversion import ConversionError, convert, import_config, load

QUIET = {"progress": False}
TEXT = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EYE = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
EAR = {"num_mel_bins": 8, "max_source_positions": 16}
QWEN_EYE = {"depth": 2, "num_heads": 3, "patch_size": 14}
QWEN_TOKENS = {
    "image_token_id": 99, "video_token_id": 98, "vision_start_token_id": 97, "vision_end_token_id": 96,
}  # fmt: skip
UNIFIED = {
    "head_dim": 12, "global_head_dim": 20, "sliding_window": 5,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
IMAGE, INDEX = {"image_token_id": 99}, {"image_token_index": 99}


def mrope(*section):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section)}}


# Case, beginning with transformers' class -> text model, its further fields, what is around it.
WRAPPERS = {
    "Llava": ("llama", {}, {"vision_config": EYE | {"model_type": "clip_vision_model"}} | INDEX),
    "Llava, tied": (
        "qwen2",
        {"tie_word_embeddings": True},
        {"vision_config": EYE | {"model_type": "clip_vision_model"}, "tie_word_embeddings": True} | INDEX,
    ),
    "LlavaNext": ("mistral", {}, {"vision_config": EYE | {"model_type": "clip_vision_model"}} | INDEX),
    "LlavaOnevision": ("qwen2", {}, {"vision_config": EYE | {"model_type": "siglip_vision_model"}} | INDEX),
    "VipLlava": (
        "llama",
        {},
        {"vision_config": EYE | {"model_type": "clip_vision_model"}, "vision_feature_layers": [-1, -2]} | INDEX,
    ),
    "InternVL": (
        "qwen3",
        {},
        {"vision_config": EYE | {"model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [14, 14]}}
        | IMAGE,
    ),
    "AyaVision": (
        "cohere2",
        {"logit_scale": 0.25},
        {"vision_config": EYE | {"model_type": "siglip_vision_model"}} | INDEX,
    ),
    "Cohere2Vision": (
        "cohere2",
        {"logit_scale": 0.25},
        {"vision_config": EYE | {"model_type": "siglip_vision_model"}} | IMAGE,
    ),
    "Idefics2": (
        "mistral",
        {},
        {
            "vision_config": EYE | {"model_type": "idefics2"},
            "perceiver_config": {
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 4,
                "resampler_head_dim": 12,
                "num_key_value_heads": 2,
                "hidden_size": 48,
            },
        }
        | IMAGE,
    ),
    "Idefics3": ("llama", {}, {"vision_config": EYE | {"model_type": "idefics3_vision"}} | IMAGE),
    "SmolVLM": ("llama", {}, {"vision_config": EYE | {"model_type": "smolvlm_vision"}} | IMAGE),
    "Lfm2Vl": ("lfm2", {}, {"vision_config": EYE | {"model_type": "siglip2_vision_model", "num_patches": 16}} | IMAGE),
    "Qwen2VL": (
        "qwen2_vl_text",
        mrope(1, 1, 2),
        {"vision_config": QWEN_EYE | {"embed_dim": 24, "hidden_size": 48}} | QWEN_TOKENS,
    ),
    "Qwen2_5_VL": (
        "qwen2_5_vl_text",
        mrope(1, 1, 2),
        {"vision_config": QWEN_EYE | {"hidden_size": 24, "intermediate_size": 40, "out_hidden_size": 48}} | QWEN_TOKENS,
    ),
    "Qwen3VL": (
        "qwen3_vl_text",
        mrope(2, 2, 2) | {"head_dim": 12},
        {
            "vision_config": QWEN_EYE
            | {
                "hidden_size": 24,
                "intermediate_size": 40,
                "out_hidden_size": 48,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            }
        }
        | QWEN_TOKENS,
    ),
    "Gemma4Unified": (
        "gemma4_unified_text",
        UNIFIED,
        {
            "vision_config": {"patch_size": 4, "mm_embed_dim": 24, "mm_posemb_size": 8, "output_proj_dims": 24},
            "audio_config": {"audio_embed_dim": 20},
        }
        | {"image_token_id": 99, "video_token_id": 98, "audio_token_id": 97},
    ),
    "Aria": (
        "aria_text",
        {"intermediate_size": 28, "moe_num_experts": 10, "moe_topk": 3},
        {"vision_config": EYE | {"model_type": "idefics3_vision"}, "projector_patch_to_query_dict": {"4": 2}} | INDEX,
    ),
    "GotOcr2": (
        "qwen2",
        {},
        {
            "vision_config": {
                "hidden_size": 24,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "image_size": 64,
                "patch_size": 16,
                "mlp_dim": 40,
                "global_attn_indexes": [1],
                "window_size": 2,
            }
        }
        | INDEX,
    ),
    "Voxtral": (
        "llama",
        {},
        {
            "audio_config": EAR
            | {
                "model_type": "voxtral_encoder",
                "hidden_size": 24,
                "intermediate_size": 40,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
            },
            "audio_token_id": 99,
        },
    ),
    "Qwen2Audio": (
        "qwen2",
        {},
        {
            "audio_config": EAR
            | {
                "model_type": "qwen2_audio_encoder",
                "d_model": 24,
                "encoder_ffn_dim": 40,
                "encoder_layers": 2,
                "encoder_attention_heads": 3,
            },
            "audio_token_index": 99,
        },
    ),
    "GraniteSpeech": (
        "granite",
        {"logits_scaling": 3.0},
        {
            "encoder_config": {
                "hidden_dim": 24,
                "num_layers": 1,
                "num_heads": 3,
                "dim_head": 8,
                "input_dim": 8,
                "output_dim": 11,
                "context_size": 8,
                "max_pos_emb": 16,
            },
            "projector_config": {
                "model_type": "blip_2_qformer",
                "hidden_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 3,
                "intermediate_size": 40,
                "encoder_hidden_size": 24,
            },
            "has_lora_adapter": False,
            "audio_token_index": 99,
        },
    ),
}
OFTEN = ("Llava, tied", "AyaVision", "Qwen3VL")


def save_theirs(case, folder):
    """transformers' own model with random weights, and its class."""
    text, fields, around = WRAPPERS[case]
    name = case.partition(",")[0]
    config_class = getattr(transformers, f"{name}Config")
    model_class = getattr(transformers, f"{name}ForConditionalGeneration")
    model = model_class(config_class(text_config=TEXT | {"model_type": text} | fields, **around)).eval()
    randomize(model)
    model.save_pretrained(folder)
    return model_class


@pytest.mark.parametrize("case", only(OFTEN, WRAPPERS))
def test_a_wrapper_around_a_known_text_model(case, tmp_path):
    source, zoo, back = (tmp_path / name for name in ("source", "zoo", "back"))
    model_class = save_theirs(case, source)
    report = convert(source, zoo, **QUIET)
    assert report.kept
    ours, theirs = load(zoo).eval(), model_class.from_pretrained(source, dtype=torch.float32).eval()
    tokens = torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    with torch.no_grad():
        for inputs in ({"input_ids": tokens}, {"input_ids": tokens, "attention_mask": mask}):
            found, expected = (model(**inputs).logits for model in (ours, theirs))
            torch.testing.assert_close(found[0], expected[0], atol=5e-5, rtol=5e-5)
            torch.testing.assert_close(found[1, 4:], expected[1, 4:], atol=5e-5, rtol=5e-5)
    raw = json.loads((source / "config.json").read_text())
    convert(zoo, back, to=raw["model_type"], **QUIET)
    assert_same_tensors(tensors_of(back), tensors_of(source))
    assert json.loads((back / "config.json").read_text()) == raw


def test_a_wrapper_that_was_fine_tuned_goes_back_with_all_it_had(tmp_path):
    source, zoo, tuned, back = (tmp_path / name for name in ("source", "zoo", "tuned", "back"))
    save_theirs("Llava", source)
    convert(source, zoo, **QUIET)
    model = load(zoo)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(1.0)
    model.save_pretrained(tuned)
    convert(tuned, back, to="llava", **QUIET)
    before, after = tensors_of(source), tensors_of(back)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert before.keys() == after.keys() and len(changed) == 1 and changed[0].endswith("layers.1.mlp.up_proj.weight")


def test_the_text_model_of_a_wrapper_can_leave_it(tmp_path):
    source, zoo, alone = (tmp_path / name for name in ("source", "zoo", "alone"))
    save_theirs("Llava", source)
    convert(source, zoo, **QUIET)
    convert(zoo, alone, to="llava", text_only=True, **QUIET)
    assert json.loads((alone / "config.json").read_text())["model_type"] == "llama"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(alone).eval()
    tokens = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, load(zoo).eval()(tokens).logits, atol=1e-5, rtol=1e-5)


def test_a_wrapper_that_attends_otherwise_is_refused(tmp_path):
    """A PaliGemma's prompt sees itself in both directions, which its text model alone does not."""
    with pytest.raises(ConversionError, match="model_type 'paligemma' cannot be converted: its prompt sees itself"):
        import_config({"model_type": "paligemma", "text_config": TEXT | {"model_type": "gemma"}})


def test_a_wrapper_around_an_unknown_text_model_is_refused(tmp_path):
    save_theirs("Llava", tmp_path / "source")
    raw = json.loads((tmp_path / "source" / "config.json").read_text())
    raw["text_config"]["model_type"] = "blip_text_model"
    (tmp_path / "source" / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConversionError, match="model_type 'llava' is not known"):
        convert(tmp_path / "source", tmp_path / "zoo", **QUIET)
