"""Rows of tokens cut over processes (context and sequence parallel): refused where a model reads them otherwise than by
torch's attention under a causal mask, found out by cutting rows here."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from accelerate.big_modeling import _attach_context_parallel_hooks
from accelerate.state import AcceleratorState
from combinations import HEADS, ROWS, SIZES, linear
from rows_alone import distinct, model_of
from transformers.distributed import DistributedConfig

from modeling_zoo import ZooConfig, ZooForCausalLM
from zoo.training.cut_rows import sequence_ties

TIED = {
    "position_embedding_type='alibi'": {"position_embedding_type": "alibi"},
    "position_embedding_type='relative'": {"position_embedding_type": "relative"},
    "sparse_attention_pattern=.'strided', 'strided', 'strided'.": {
        "sparse_attention_pattern": "strided",
        "sparse_attention_stride": 3,
    },
    "use_bidirectional_attention=True": {"use_bidirectional_attention": True},
    "attention_type='forgetting'": {"attention_type": "forgetting"},
    "layer_types=\\['linear_attention'\\]": linear("gated_delta_net", ["linear_attention"] * 3, **HEADS),
    "layer_types=\\['conv'\\]": linear("short_conv", ["conv", "full_attention", "conv"]),
    "layer_types=\\['hybrid'\\]": linear("mamba2", ["hybrid"] * 3, **HEADS),
    "layer_types=\\['sliding_attention'\\]": {"layer_types": ["sliding_attention"] * 3, "sliding_window": 4},
    "num_mtp_layers=1": {"num_mtp_layers": 1},
}


def switched_on(monkeypatch, **sizes):
    """As accelerate's state is once an Accelerator was made with such a layout."""
    monkeypatch.setitem(AcceleratorState._shared_state, "parallelism_config", SimpleNamespace(**sizes))


@pytest.mark.parametrize("setting", ["cp_size", "sp_size"])
@pytest.mark.parametrize("named", TIED)
def test_what_a_cut_row_would_change_is_refused(named, setting, monkeypatch):
    model = ZooForCausalLM(ZooConfig(**{**SIZES, **TIED[named]}))
    switched_on(monkeypatch, **{setting: 2})
    with pytest.raises(ValueError, match=f"^{setting}=2 cuts rows .* which {named} does not allow: "):
        model.train()
    model.eval()
    switched_on(monkeypatch, cp_size=1, sp_size=1)
    model.train()


def test_a_plain_model_is_cut(monkeypatch):
    switched_on(monkeypatch, cp_size=2, sp_size=1)
    tokens = torch.randint(101, (1, 9))
    ZooForCausalLM(ZooConfig(**SIZES)).train()(tokens, labels=tokens)


def test_a_word_that_does_nothing_is_refused(tmp_path):
    ZooForCausalLM(ZooConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="enable_sequence_parallel=True: transformers reserves this word"):
        ZooForCausalLM.from_pretrained(tmp_path, distributed_config=DistributedConfig(enable_sequence_parallel=True))


def only_own(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Instead of torch's attention: each query reads the value of its own token."""
    return value.repeat_interleave(query.shape[1] // value.shape[1], 1)


@pytest.mark.long
@pytest.mark.parametrize("group", ["norm", "block", "position", "mixer", "multi_token", "attention", "embedding"])
def test_rows_are_cut_where_that_changes_nothing_and_refused_elsewhere(group):
    """Without torch's attention the two halves of a row know nothing of each other; with accelerate's hooks in place of
    the masks the numbers stay."""
    places = torch.arange(16).expand(2, -1)
    wrong = {}
    for name, row in distinct(ROWS[group]).items():
        model = model_of(row)
        # Layers without a mixer are refused by accelerate.
        if model is None or sequence_ties(model.config) or "moe" in model.config.layer_types:
            continue
        tokens = torch.randint(1, 101, (2, 16))
        whole = model.train()(tokens, position_ids=places).logits
        with patch.object(F, "scaled_dot_product_attention", only_own):
            alone = model(tokens, position_ids=places).logits
            halves = [model(tokens[:, cut], position_ids=places[:, cut]).logits for cut in (slice(8), slice(8, 16))]
        _attach_context_parallel_hooks(model)
        causal = model(tokens, position_ids=places).logits
        if (torch.cat(halves, 1) - alone).abs().max() > 1e-6 * alone.abs().max():
            wrong[name] = "reads other tokens by another way"
        elif (causal - whole).abs().max() > 1e-6 * whole.abs().max():
            wrong[name] = "has another mask"
        elif model.config._attn_implementation != "sdpa":
            wrong[name] = "has another backend"
    assert not wrong
