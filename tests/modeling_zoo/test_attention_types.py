"""Mechanisms of softmax attention side by side in one model, by a list in attention_type."""

import pytest
import torch
from combinations import SIZES
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, get_peft_model
from random_models import randomize
from transformers import DynamicCache
from ways_to_run import TOKENS, check_cached, check_generated, check_padded, check_saved

from configuration_zoo import ZooConfig
from description_zoo.measure import measure
from modeling_zoo import ZooForCausalLM
from modeling_zoo.cache_growing import GrowingLayer, LatentLayer
from modeling_zoo.cache_upgrade import upgrade_cache
from modeling_zoo.platform_vllm import unsupported_by_vllm
from zoo.cli.placement import place

GROUPED, LATENT = "grouped_query", "latent"
WIDTHS = {"kv_lora_rank": 20, "q_lora_rank": 18, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6}
INDEXER = {"index_topk": 4, "index_n_heads": 5, "index_head_dim": 8}
HEADS = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 10, "linear_value_head_dim": 12}
MIXED = {
    "plain": {"attention_type": [GROUPED, LATENT, GROUPED]},
    "wide values": {"attention_type": [LATENT, GROUPED, LATENT], "v_head_dim": 14, "qk_norm": "rms_norm"},
    "windows": {
        "attention_type": [LATENT, GROUPED, LATENT], "sliding_window": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "per_layer_config": {1: {"sliding_window": 6}},
    },
    "indexed": {
        **INDEXER, "attention_type": [GROUPED, LATENT, LATENT],
        "layer_types": ["full_attention", "full_attention", "indexed_attention"],
    },
    "recurrent": {
        **HEADS, "attention_type": [None, LATENT, GROUPED], "linear_attention_type": "gated_delta_net",
        "layer_types": ["linear_attention", "full_attention", "full_attention"],
    },
}  # fmt: skip


def config_of(**fields):
    return ZooConfig(**{**SIZES, **WIDTHS, **fields})


def build(**fields):
    model = ZooForCausalLM(config_of(**fields))
    randomize(model)
    return model.eval()


@torch.no_grad()
def layer_by_layer(model, fields, tokens):
    """Logits where each layer is one of a model that has its mechanism, and what else is its own, in all layers."""
    own = fields.get("per_layer_config", {})
    alone = {name: value for name, value in fields.items() if name not in ("attention_type", "per_layer_config")}
    stream = model.model.embed_tokens(tokens)
    for index, name in enumerate(fields["attention_type"]):
        mechanism = {"attention_type": name or GROUPED, **own.get(index, {})}
        kept = {**SIZES, **(WIDTHS if mechanism["attention_type"] == LATENT else {}), **alone, **mechanism}
        if mechanism["attention_type"] == LATENT:
            kept.setdefault("v_head_dim", SIZES["head_dim"])
        else:
            words = kept.get("layer_types", [])
            kept["layer_types"] = ["full_attention" if word == "indexed_attention" else word for word in words] or None
            kept = {name: value for name, value in kept.items() if name not in INDEXER}
        other = ZooForCausalLM(ZooConfig(**kept)).eval()
        found = []
        layer = other.model.layers[index]
        layer.load_state_dict(model.model.layers[index].state_dict())
        before, start = other.model.layers[:index], stream
        hooks = [one.register_forward_hook(lambda module, args, output, start=start: start) for one in before]
        hooks.append(layer.register_forward_hook(lambda module, args, output, found=found: found.append(output)))
        inputs = {"inputs_embeds": stream} if index == 0 else {"input_ids": tokens}
        other(**inputs, use_cache=False)
        stream = found[0]
    return model.lm_head(model.model.norm(stream))


@pytest.mark.parametrize("variant", MIXED)
def test_each_layer_is_what_it_is_in_a_model_of_its_kind(variant, tmp_path):
    model, tokens = build(**MIXED[variant]), torch.randint(3, 101, (2, TOKENS))
    expected = layer_by_layer(model, MIXED[variant], tokens)
    with torch.no_grad():
        check_cached(model, tokens, expected)
        check_padded(model, tokens, expected)
        check_generated(model, tokens)
        check_saved(model, tokens, model(tokens).logits, tmp_path)
    model.train()(tokens, labels=tokens).loss.backward()


def test_a_name_for_all_stays_a_name():
    assert config_of(attention_type=LATENT).to_dict()["attention_type"] == LATENT
    named = [GROUPED, LATENT, GROUPED]
    assert ZooConfig.from_dict(config_of(attention_type=named).to_dict()).attention_type == named


def test_tools_see_each_layer_as_it_is():
    config = config_of(**MIXED["plain"])
    model = ZooForCausalLM(config)
    caches = upgrade_cache(DynamicCache(config=config), config).layers
    assert [type(layer) for layer in caches] == [GrowingLayer, LatentLayer, GrowingLayer]
    layers = measure(config)["layers"]
    assert [layer["mixer"] for layer in layers] == [
        "grouped_query 6/2 x 12", "latent 6/2 x 10+6/12, kv 20, q 18", "grouped_query 6/2 x 12",
    ]  # fmt: skip
    # Two bytes for each number of keys and values, or of latent and rope key.
    assert [layer["cache_bytes_per_token"] for layer in layers] == [2 * 2 * 24, 2 * 26, 2 * 2 * 24]
    # A pattern of a plan means the same in every layer: heads of two kinds are split in none.
    assert not [name for name in config.base_model_tp_plan if "self_attn" in name]
    assert place(config, 2, 1)["cache_bytes_per_token_per_rank"] == 2 * (24 * 4 + 26)
    assert unsupported_by_vllm(config) == ["attention_type"]
    adapted = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **model.lora_targets(["attention"])))
    assert {name.split(".self_attn.")[1].split(".")[0] for name in adapted.state_dict() if "lora_A" in name} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj",
    }  # fmt: skip


CONVOLVED = {
    "layer_types": ["conv", "full_attention", "conv"], "linear_attention_type": "short_conv",
    "no_rope_layers": [1, 0, 1],
}  # fmt: skip


def test_a_layer_without_attention_needs_no_name():
    for names in ([None, GROUPED, None], [GROUPED] * 3):
        model = ZooForCausalLM(ZooConfig(**SIZES, **CONVOLVED, attention_type=names))
        assert not any("latent" in type(module).__name__.lower() for module in model.modules())
    with pytest.raises(
        StrictDataclassError, match=r"attention_type\[0\]='latent' only means something with layer_types"
    ):
        ZooConfig(**SIZES, **CONVOLVED, attention_type=[LATENT, GROUPED, LATENT])
    ZooConfig(**SIZES, **CONVOLVED, attention_type=[LATENT] * 3)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"attention_type": [GROUPED, LATENT]}, "attention_type has 2 entries but num_hidden_layers=3"),
        ({"attention_type": [GROUPED, "latnt", LATENT]}, r"attention_type\[1\]='latnt' is not one of"),
        ({"attention_type": [GROUPED, None, LATENT]}, r"layer_types\[1\]='full_attention' needs an attention_type"),
        ({"attention_type": [GROUPED] * 3}, "only means something with attention_type='latent'"),
        (MIXED["indexed"] | {"attention_type": [LATENT, LATENT, "forgetting"]}, "which needs attention_type='latent'"),
        (MIXED["plain"] | {"position_embedding_type": "transformer_xl"}, "needs attention_type='grouped_query'"),
        (
            MIXED["plain"]
            | {"position_embedding_type": "alibi", "position_config.alibi_scaled": True, "qk_rope_head_dim": 0},
            "position_config.alibi_scaled=True needs heads of one width",
        ),
        (MIXED["plain"] | {"num_kv_shared_layers": 2}, "needs attention_type='grouped_query'"),
        ({"attention_type": [LATENT, GROUPED, GROUPED], "num_kv_shared_layers": 2}, "attention_type of layer 0, whose"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_by_name(fields, says):
    with pytest.raises(StrictDataclassError, match=says):
        config_of(**fields)
