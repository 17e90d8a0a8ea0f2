"""All faster forms at once against the plain ones: eager scores over transformers' own cache, however generated."""

import pytest
import torch
from random_models import randomize
from samples import every
from tiny_fields import GROUPED, LATENT, WIDTHS

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM, modeling_zoo

WINDOW = 5
SIZES = WIDTHS | {"vocab_size": 89, "num_hidden_layers": 2, "max_position_embeddings": 128}
EXPERTS = {"mlp_layer_types": ["sparse"] * 2, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
MODELS = {
    "grouped": GROUPED | EXPERTS,
    "sliding": GROUPED | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW},
    "chunked": GROUPED | {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": WINDOW},
    "latent": LATENT,
    "latent, sliding": LATENT | {"layer_types": ["sliding_attention"] * 2, "sliding_window": WINDOW},
    "sparse": LATENT | {
        "layer_types": ["indexed_attention"] * 2, "index_topk": 7, "index_n_heads": 3, "index_head_dim": 8,
    },
    "recurrent": GROUPED | {
        "layer_types": ["linear_attention", "full_attention"], "linear_attention_type": "gated_delta_net",
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5,
        "linear_conv_kernel_dim": 4,
    },
}  # fmt: skip
# Speculation takes one row.
WAYS = {
    "greedy": {},
    "one row": {"rows": 1},
    "padded": {"padding": 4},
    "beams": {"num_beams": 3, "padding": 2},
    "chunked prefill": {"prefill_chunk_size": 4},
    "static": {"cache_implementation": "static"},
    "lookup": {"prompt_lookup_num_tokens": 3, "rows": 1},
    "assisted": {"rows": 1, "assisted": True},
}


def make(name, backend, seed=4):
    torch.manual_seed(seed)
    model = ZooForCausalLM(ZooConfig(**SIZES, **MODELS[name], attn_implementation=backend))
    randomize(model)
    return model.eval()


def generate(model, rows=2, padding=0, **options):
    ids = torch.randint(1, 89, (rows, 3 * WINDOW), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    ids[0, :padding], mask[0, :padding] = 0, 0
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=WINDOW + 4, do_sample=False, pad_token_id=0, eos_token_id=None,
        output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("case", every(5, [(name, way) for name in MODELS for way in WAYS]), ids=str)
def test_generates_what_the_plain_path_generates(case, monkeypatch):
    name, way = case
    model, options = make(name, "sdpa"), dict(WAYS[way])
    # Speculation changes no token, so the plain path has none.
    plain = {key: part for key, part in options.items() if key in ("rows", "padding", "num_beams")}
    if options.pop("assisted", False):
        # One that is mostly wrong, so that every cache is rolled back.
        options["assistant_model"] = make(name, "sdpa", seed=5)
    found = generate(model, **options)
    assert any(type(layer).__module__.startswith("modeling_zoo") for layer in found.past_key_values.layers) or (
        way == "static"
    )
    monkeypatch.setattr(modeling_zoo, "upgrade_cache", lambda cache, *args: cache)
    expected = generate(make(name, "eager"), **plain)
    assert all(type(layer).__module__.startswith("transformers") for layer in expected.past_key_values.layers)
    assert torch.equal(found.sequences, expected.sequences)
    assert len(set(expected.sequences[-1, 3 * WINDOW :].tolist())) > 1, "a constant answer would prove nothing"
    if "assistant_model" not in options and "prompt_lookup_num_tokens" not in options:
        torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=1e-4, atol=2e-5)
