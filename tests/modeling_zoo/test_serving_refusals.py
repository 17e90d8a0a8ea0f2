"""What a serving engine would drop in silence is refused when its backend is asked for, and the card says so."""

import pytest
import torch
from combinations import EXPERTS, LATENT, ROWS, SIZES
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from description_zoo.card import write_plain_card
from modeling_zoo import ZooConfig, ZooForCausalLM
from modeling_zoo.ops_attention import eager_attention_forward
from modeling_zoo.platform_vllm import unsupported_by_vllm

LINEAR = {"layer_types": ["linear_attention", "full_attention", "linear_attention"],
          "linear_attention_type": "gated_delta_net", "linear_num_key_heads": 2, "linear_num_value_heads": 4,
          "linear_key_head_dim": 10, "linear_value_head_dim": 12}  # fmt: skip
SERVED = [
    {},
    {"qk_norm": "rms_norm", "attn_output_gate": "query", "block_type": "sandwich_norm"},
    {"qk_norm": "rms_norm", "qk_norm_config.scope": "full"},
    {"qk_norm": "layer_norm", "qk_norm_config.weight": "per_head"},
    {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 4},
    {**EXPERTS, "n_shared_experts": 1, "shared_expert_gate": True},
    LATENT,
    {"logits_scaling": 3.0},
    {"position_embedding_type": "learned", "position_config.ids_from_mask": True, "position_config.offset": 2},
]
REFUSED = [
    ("layer_types", LINEAR),
    ("layer_types", {"layer_types": ["chunked_attention"] * 3, "attention_chunk_size": 4}),
    ("position_embedding_type", {"position_embedding_type": "alibi"}),
    ("attention_sinks", {"attention_sinks": "all"}),
    ("v_head_dim", {"v_head_dim": 10}),
    ("qk_norm_config.weight", {"qk_norm": "rms_norm", "qk_norm_config.weight": "per_head"}),
    ("hidden_act", {**EXPERTS, "hidden_act": "gelu"}),
    ("expert_bias", {**EXPERTS, "expert_bias": True}),
    ("swiglu_limit", {**EXPERTS, "swiglu_limit": 3.0}),
    ("num_key_value_heads", {"per_layer_config": {1: {"num_key_value_heads": 3}}}),
    ("per_layer_config", {**LATENT, "per_layer_config": {1: {"intermediate_size": 40}}}),
    ("logits_scaling", {"logits_scaling": 3.0, "final_logit_softcapping": 5.0}),
    ("suppressed_token_ids", {"suppressed_token_ids": [3]}),
]


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    """A backend of the engine's name, as its import registers it."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "vllm", eager_attention_forward)


def build(**flags):
    config = ZooConfig(**{**SIZES, **flags})
    return ZooForCausalLM._from_config(config, attn_implementation="vllm")


@pytest.mark.parametrize("flags", SERVED)
def test_what_an_engine_honours_is_built_for_it(flags):
    assert unsupported_by_vllm(ZooConfig(**{**SIZES, **flags})) == []
    assert build(**flags).config._attn_implementation == "vllm"


@pytest.mark.parametrize("flags", [{"logits_scaling": 0.3}, {"final_logit_softcapping": 2.0}, {}], ids=str)
def test_an_engine_that_makes_the_logits_makes_the_same(flags):
    """vLLM's backend reads two numbers from the config: it caps, then it multiplies by `logit_scale`."""
    model = build(**flags).eval()
    config, tokens = model.config.get_text_config(), torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        logits = model.lm_head(model.model(tokens).last_hidden_state)
        cap = getattr(config, "final_logit_softcapping", None)
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        torch.testing.assert_close(logits * getattr(config, "logit_scale", 1.0), model(tokens).logits)


def test_an_engine_says_where_tokens_stand():
    """It gives positions and no mask: those that are counted over the mask of a padded row."""
    flags = {"position_embedding_type": "learned", "position_config.ids_from_mask": True, "position_config.offset": 2}
    model = ZooForCausalLM(ZooConfig(**{**SIZES, **flags})).eval()
    tokens, mask = torch.tensor([[1, 1, 3, 5, 7]]), torch.tensor([[0, 0, 1, 1, 1]])
    with torch.no_grad():
        expected = model(tokens, attention_mask=mask).logits[:, 2:]
        found = model(tokens[:, 2:], position_ids=torch.arange(3)[None]).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("field", "flags"), REFUSED)
def test_what_an_engine_would_drop_is_refused_by_name(field, flags, tmp_path):
    with pytest.raises(ValueError, match=f"{field}.*(export|use one of)"):
        build(**flags)
    write_plain_card(tmp_path, ZooConfig(**{**SIZES, **flags}))
    card = (tmp_path / "README.md").read_text()
    assert f"`{field}`" in card.split("## Serve")[1] and "vllm import" not in card


@pytest.mark.parametrize("group", [group for group in ROWS if group != "stray"])
def test_every_flag_is_either_served_or_refused_by_a_field_it_has(group):
    for flags in ROWS[group]:
        config = ZooConfig(**{**SIZES, **flags})
        assert all(hasattr(config.per_layer_config[0], field) for field in unsupported_by_vllm(config))


@pytest.mark.parametrize(
    ("said", "flags"),
    [
        ("attn_logit_softcapping=3.0: set VLLM_MLA_DISABLE=1", {"attn_logit_softcapping": 3.0}),
        ("sliding_window=4: set", {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 4}),
        (r"head_dim=12 for its width, which is 26: pass hf_overrides=\{'head_dim': 26\}", {"head_dim": 12}),
    ],
)
def test_a_cache_of_latents_refuses_what_it_would_drop(said, flags, monkeypatch):
    """The engine's own attention over latents; it takes the maps out of the text of `forward`."""
    flags = {"num_hidden_layers": 4, "head_dim": 26} | flags
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "vllm_mla", eager_attention_forward)
    model = build(**{**LATENT, **flags}).eval()
    tokens = torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        model(tokens)
        model.config._attn_implementation = "vllm_mla"
        with pytest.raises(ValueError, match=said):
            model(tokens)


def test_a_cache_of_latents_is_taken_where_it_computes_the_same(monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "vllm_mla", eager_attention_forward)
    model = build(**LATENT | {"head_dim": LATENT["kv_lora_rank"] + LATENT["qk_rope_head_dim"]}).eval()
    tokens = torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        expected = model(tokens).logits
        model.config._attn_implementation = "vllm_mla"
        assert torch.equal(model(tokens).logits, expected)


@pytest.mark.parametrize("key", ["logit_scale", "output_width"])
def test_a_file_cannot_set_what_the_config_computes(key):
    with pytest.raises(ValueError, match=f"{key}=2.0 is not a field of ZooConfig"):
        ZooConfig.from_dict({**SIZES, key: 2.0})
