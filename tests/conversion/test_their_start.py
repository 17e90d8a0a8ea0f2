"""Families whose classes start some matrices in a way of their own: so does a new model of the converted config."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from conversion import import_config
from modeling_zoo import ZooForCausalLM

SIZES = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 300}
# model_type -> its arguments, (their matrix, ours) of those drawn in a way of its own, and of some that are not.
STARTS = {
    "gpt2": (
        {"n_embd": 96, "n_layer": 3, "n_head": 4, "vocab_size": 300, "n_positions": 64},
        [("transformer.h.1.attn.c_proj", "layers.1.self_attn.o_proj"),
         ("transformer.h.1.mlp.c_proj", "layers.1.mlp.down_proj"),
         ("transformer.h.1.mlp.c_fc", "layers.1.mlp.up_proj"), ("transformer.wte", "embed_tokens")],
    ),
    "nanochat": (
        SIZES | {"intermediate_size": 256},
        [("model.layers.1.self_attn.o_proj", "layers.1.self_attn.o_proj"),
         ("model.layers.1.mlp.fc2", "layers.1.mlp.down_proj")],
    ),
    "recurrent_gemma": (
        SIZES | {"num_key_value_heads": 1, "intermediate_size": 256, "lru_width": 96, "attention_window_size": 8},
        [("model.embed_tokens", "embed_tokens"),
         ("model.layers.0.temporal_block.linear_x", "layers.0.linear_attn.in_proj"),
         ("model.layers.0.temporal_block.linear_y", "layers.0.linear_attn.g_proj"),
         ("model.layers.0.temporal_block.linear_out", "layers.0.linear_attn.o_proj"),
         ("model.layers.0.temporal_block.rg_lru.input_gate_weight", "layers.0.linear_attn.input_gate"),
         ("model.layers.2.temporal_block.q_proj", "layers.2.self_attn.q_proj"),
         ("model.layers.2.temporal_block.o_proj", "layers.2.self_attn.o_proj"),
         ("model.layers.2.mlp_block.gate_proj", "layers.2.mlp.gate_proj"),
         ("model.layers.2.mlp_block.down_proj", "layers.2.mlp.down_proj")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("model_type", STARTS)
def test_a_new_model_of_a_converted_config_starts_as_theirs(model_type):
    arguments, pairs = STARTS[model_type]
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **arguments))
    ours = ZooForCausalLM(import_config(theirs.config.to_dict()))
    for their_name, our_name in pairs:
        their_name = their_name if their_name.endswith("_weight") else f"{their_name}.weight"
        expected, found = theirs.get_parameter(their_name).std(), ours.get_parameter(f"model.{our_name}.weight").std()
        torch.testing.assert_close(found, expected, rtol=0.06, atol=0, msg=f"{our_name}: {found} for {expected}")
