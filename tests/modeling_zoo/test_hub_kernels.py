"""use_kernels=True: layers as those of the Hub, but in plain torch, and the parts of a model that take them."""

import inspect
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
import transformers
from combinations import SIZES
from random_models import randomize
from torch import nn

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM
from modeling_zoo.mlp_dense import GatedMLP
from modeling_zoo.norms import RMSNorm
from modeling_zoo.recurrent_gated_norm import GatedRMSNorm

used = []


class LigerRMSNorm(nn.Module):
    def forward(self, hidden_states):
        used.append("RMSNorm")
        return F.rms_norm(hidden_states, self.weight.shape, None, self.variance_epsilon) * self.weight


class LigerSwiGLUMLP(nn.Module):
    def forward(self, x):
        used.append("SwiGLUMLP")
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LigerGEGLUMLP(nn.Module):
    def forward(self, x):
        used.append("GeGLUMLP")
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class FusedRMSNormGated(nn.Module):
    def forward(self, hidden_states, gate=None):
        used.append("RMSNormGated")
        assert self.activation in ("silu", "sigmoid") and hidden_states.shape[-1] == self.weight.shape[0]
        normed = F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
        return normed * (F.silu(gate) if self.activation == "silu" else gate.sigmoid())


HUB = {
    "RMSNorm": LigerRMSNorm,
    "SwiGLUMLP": LigerSwiGLUMLP,
    "GeGLUMLP": LigerGEGLUMLP,
    "RMSNormGated": FusedRMSNormGated,
}


def kernelize(model, mode=None):
    """What `kernels` does: the forward of a layer into modules whose class has its word, arguments of one kind."""
    for module in model.modules():
        layer = HUB.get(getattr(type(module), "kernel_layer_name", None))
        if layer is not None:
            kinds = [
                [one.kind for one in inspect.signature(x.forward).parameters.values()] for x in (layer, type(module))
            ]
            assert kinds[0] == kinds[1]
            module.forward = MethodType(layer.forward, module)
    model._use_kernels = True


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr(transformers.modeling_utils, "is_kernels_available", lambda: True)
    monkeypatch.setattr(transformers.modeling_utils, "kernelize", kernelize)
    monkeypatch.setattr(
        transformers.integrations.hub_kernels, "register_kernel_mapping_transformers", lambda mapping=None: None
    )
    used.clear()


LAYERS = SIZES["num_hidden_layers"]
HYBRID = {"layer_types": ["linear_attention"] * (LAYERS - 1) + ["full_attention"]}
WIDTHS = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5}
# Flags → how often each kernel runs in a forward.
CASES = {
    "llama": ({}, {"RMSNorm": 2 * LAYERS + 1, "SwiGLUMLP": LAYERS}),
    "norms of queries and keys": ({"qk_norm": "rms_norm"}, {"RMSNorm": 4 * LAYERS + 1, "SwiGLUMLP": LAYERS}),
    "gemma": ({"norm_unit_offset": True, "hidden_act": "gelu_pytorch_tanh"}, {"GeGLUMLP": LAYERS}),
    "rounded behind the weight": ({"precision": {"norm": "scale_then_cast"}}, {"SwiGLUMLP": LAYERS}),
    "layer norm": ({"norm_type": "layer_norm"}, {"SwiGLUMLP": LAYERS}),
    "multiplied": ({"mup_multipliers": {"mlp": [0.5, 2.0]}}, {"RMSNorm": 2 * LAYERS + 1}),
    "clamped": ({"swiglu_config": {"dense_limit": 1.0}}, {"RMSNorm": 2 * LAYERS + 1}),
    "gated delta net": (
        HYBRID | WIDTHS | {"linear_attention_type": "gated_delta_net"},
        {"RMSNorm": 2 * LAYERS + 1, "SwiGLUMLP": LAYERS, "RMSNormGated": LAYERS - 1},
    ),
    "kimi delta attention": (
        HYBRID | WIDTHS | {"linear_attention_type": "kimi_delta_attention"},
        {"RMSNorm": 2 * LAYERS + 1, "SwiGLUMLP": LAYERS, "RMSNormGated": LAYERS - 1},
    ),
    "mamba 2": (
        HYBRID | WIDTHS | {"linear_attention_type": "mamba2"},
        {"RMSNorm": 2 * LAYERS + 1, "SwiGLUMLP": LAYERS},
    ),
}  # fmt: skip


def counts():
    return {word: used.count(word) for word in HUB if word in used}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_parts_that_compute_the_same_take_the_kernels(name, kernels, tmp_path):
    flags, expected = CASES[name]
    torch.manual_seed(0)
    model = ZooForCausalLM(ZooConfig(**SIZES | flags)).eval()
    randomize(model)
    tokens, names = torch.randint(1, SIZES["vocab_size"], (2, 9)), list(model.state_dict())
    logits = model(tokens).logits
    model.set_use_kernels(True)
    model.set_use_kernels(True)
    torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-4, atol=1e-4)
    assert counts() == expected and list(model.state_dict()) == names
    if name != "gated delta net":
        return
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(ZooForCausalLM.from_pretrained(tmp_path)(tokens).logits, logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_without_a_kernel_the_parts_compute_as_before(kernels, monkeypatch):
    flags, _ = CASES["gated delta net"]
    model = ZooForCausalLM(ZooConfig(**SIZES | flags)).eval()
    randomize(model)
    tokens = torch.randint(1, SIZES["vocab_size"], (2, 9))
    logits = model(tokens).logits
    monkeypatch.setattr(transformers.modeling_utils, "kernelize", lambda model, mode=None: None)
    model.set_use_kernels(True)
    torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-5, atol=1e-5)
    assert not used


def test_a_model_without_such_parts_says_so(kernels, monkeypatch):
    said = []
    monkeypatch.setattr("modeling_zoo.platform_kernels.logger.warning_once", said.append)
    model = ZooForCausalLM(ZooConfig(**SIZES, norm_type="layer_norm", gated_mlp=False))
    assert not any(isinstance(module, (RMSNorm, GatedMLP, GatedRMSNorm)) for module in model.modules())
    model.set_use_kernels(True)
    assert said == ["use_kernels=True changes nothing: no part of this model computes what a kernel of the Hub does."]
