"""Cut between layers as transformers' pipeline does it: every stage in turn gives what the whole model gives."""

import copy

import pytest
import torch
from combinations import EXPERTS, FULL, HEADS, LATENT, LINEAR, SIZES, SLIDING
from random_models import randomize
from torch import nn
from transformers import DynamicCache

from modeling_zoo import ZooConfig, ZooForCausalLM
from modeling_zoo.platform_pipeline import UNCUT

RECURRENT = {"linear_attention_type": "gated_delta_net", **HEADS, "sliding_window": 4}
MODELS = {
    "scaled": {"embedding_multiplier": 7.0, "embedding_norm": True},
    "learned positions": {"position_embedding_type": "learned"},
    "narrow embedding": {"embedding_size": 20},
    "biases": {"position_embedding_type": "alibi"},
    "float32 stream": {"precision.residual_in_fp32": True},
    "sliding": {"layer_types": [SLIDING, FULL] * 2, "sliding_window": 4},
    "latent": LATENT,
    "experts": {**EXPERTS, "mlp_layer_types": ["dense", "sparse"] * 2},
    "recurrent": {**RECURRENT, "layer_types": [FULL, LINEAR, SLIDING, LINEAR]},
}


class Elsewhere(nn.Identity):
    """As PipelineIdentityLayer: takes whatever a layer takes."""

    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states


def make(**flags):
    model = ZooForCausalLM(ZooConfig(**{**SIZES, "num_hidden_layers": 4, **flags}))
    randomize(model)
    return model.eval()


def stages_of(model):
    """Two halves, with the modules that transformers takes out."""
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    for index in range(4):
        (second if index < 2 else first).model.layers[index] = Elsewhere()
    second.model.embed_tokens = nn.Identity()
    first.model.norm = first.lm_head = nn.Identity()
    return first, second


@pytest.mark.parametrize("name", MODELS)
def test_stages_in_turn_are_the_whole_model(name):
    """A padded prompt and steps after it, each stage with a cache of its own."""
    model = make(**MODELS[name])
    first, second = stages_of(model)
    tokens, mask = torch.randint(6, 101, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    caches = [None, None, None]
    with torch.no_grad():
        for begin, end in ((0, 6), (6, 7), (7, 9)):
            part, seen = tokens[:, begin:end], {"attention_mask": mask[:, :end], "use_cache": True}
            whole = model(part, past_key_values=caches[0], **seen)
            sent = first.model(part, past_key_values=caches[1], **seen)
            found = second(inputs_embeds=sent.last_hidden_state, past_key_values=caches[2], **seen)
            caches = [whole.past_key_values, sent.past_key_values, found.past_key_values]
            real = mask[:, begin:end].bool()
            torch.testing.assert_close(found.logits[real], whole.logits[real], rtol=1e-5, atol=1e-5)
    assert [cache.get_seq_length() for cache in caches] == [9, 9, 9]


WHOLE = {
    "num_kv_shared_layers": {"num_kv_shared_layers": 2},
    "hidden_size_per_layer_input": {"hidden_size_per_layer_input": 10},
    "num_mem_blocks": {
        **RECURRENT | {"sliding_window": None, "layer_types": ["hybrid", LINEAR] * 2},
        **{"block_type": ["shared_block", "mixer_only"] * 2, "num_mem_blocks": 1},
    },
    "hc_mult": {"block_type": "hyper_connection", "hc_mult": 2},
    "num_mtp_layers": {"num_mtp_layers": 1},
    "block_config.attn_res_block_size": {"block_type": "attention_residual", "block_config.attn_res_block_size": 2},
    "block_config.altup_num_inputs": {"block_type": "altup", "block_config.altup_num_inputs": 2},
}


@pytest.mark.parametrize("field", UNCUT)
def test_what_cannot_be_cut_is_refused_by_name(field):
    first, second = stages_of(make(**WHOLE[field]))
    with pytest.raises(ValueError, match=f"pp_size cuts between layers, which {field}=.* does not allow: use tp_size"):
        first(torch.tensor([[3, 5]]), past_key_values=DynamicCache(config=first.config))
    with pytest.raises(ValueError, match="pp_size cuts between layers"):
        second(inputs_embeds=torch.randn(1, 2, SIZES["hidden_size"]))
