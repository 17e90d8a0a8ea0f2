"""Names of transformers that it has promised nobody: in one file, and nothing goes wrong in silence without them."""

import ast
import logging
from functools import cache
from pathlib import Path

import pytest
import torch
from combinations import EXPERTS, LATENT, SIZES, SLIDING
from random_models import randomize
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.models.auto import modeling_auto

import modeling_zoo as package
from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM, ZooPreTrainedModel, mlp_experts, ops_experts, platform_transformers

ROOT = Path(package.__file__).resolve().parent.parent
FILES = [path for folder in ("configuration_zoo", "modeling_zoo") for path in sorted((ROOT / folder).glob("*.py"))]
PLATFORM = "platform_transformers.py"
# Underscored names that stand elsewhere: of transformers only what every model's file uses, and names of others.
ELSEWHERE = {
    "_attn_implementation": "how transformers' own models ask a config for the backend",
    "_experts_implementation": "the same for experts",
    "_apply_gate": "what transformers' experts interface documents that a class with its own gate defines",
    "_LAYER_TYPE_MAPPING": "the end of a public name",
    "_dynamo": "torch's, which its documentation names",
    "_fields": "a node's of Python's syntax tree, documented",
    "_forward_hooks": "torch's; a module without it has no hooks to ask for",
    "_forward_pre_hooks": "the same",
    "_is_avx512_bf16_supported": "torch's; without it a CPU counts as one without units",
    "_replace": "a named tuple's, documented",
    "_scaled_dot_product_flash_attention": "an operation of torch, which stands in every exported graph",
}


def underscored(name):
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


@cache
def tree_of(path):
    return ast.parse(path.read_text())


def defined(tree):
    """Underscored names that a file defines itself: functions, classes, constants, what it stores in `self`."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def used(tree):
    """(line, name) of each underscored attribute, import, and string that asks for one."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            names = [word.value for word in ast.walk(node.args[1]) if isinstance(word, ast.Constant)]
        yield from ((node.lineno, name) for name in names if isinstance(name, str) and underscored(name))


@cache
def own_names():
    return {name for path in FILES for name in defined(tree_of(path))}


# Names that a suffix of a parameter's name is made of, as in f"{projection}_bias".
SUFFIXES = {"_bias"}


@pytest.mark.parametrize("path", [path for path in FILES if path.name != PLATFORM], ids=lambda path: path.name)
def test_private_names_stand_in_one_file(path):
    found = {(line, name) for line, name in used(tree_of(path)) if name not in own_names() | SUFFIXES | {*ELSEWHERE}}
    assert found == set(), f"belongs into {PLATFORM}"


def test_a_private_name_would_be_found():
    tree = ast.parse("from transformers import _hidden\ncache._inner\nself._own = 1\ngetattr(model, '_stage', None)\n")
    names = {name for _, name in used(tree)} - set(defined(tree))
    assert names == {"_hidden", "_inner", "_stage"}


def test_what_zoo_defines_for_transformers_is_listed():
    """A base class has it, or the list says where transformers has it."""
    models = [cls for cls in vars(package).values() if isinstance(cls, type) and issubclass(cls, ZooPreTrainedModel)]
    ours = {name for cls in models for base in cls.__mro__ if "zoo" in base.__module__ for name in vars(base)}
    # Cached answers to questions that transformers asks of a file's text.
    answered = {f"_can_set_{what}_implementation_cached_value" for what in ("attn", "experts")}
    abstract = {name for name in ours if name.startswith("_abc_")}
    listed = {name for name in ours if underscored(name)} - answered - abstract
    assert listed == set(platform_transformers.FOUND_BY_TRANSFORMERS)


@pytest.mark.parametrize("name", platform_transformers.FOUND_BY_TRANSFORMERS)
def test_a_renamed_hook_is_named(name, monkeypatch, caplog):
    owner, loss = platform_transformers.FOUND_BY_TRANSFORMERS[name]
    monkeypatch.setattr(platform_transformers, "logger", logging.getLogger("gone"))
    monkeypatch.setattr(logging.Logger, "warning_once", logging.Logger.warning, raising=False)
    platform_transformers.warn_of_what_is_gone()
    assert caplog.text == ""
    # Some are inherited by the owner: whichever class has it loses it.
    for base in owner.__mro__:
        if name in vars(base):
            monkeypatch.delattr(base, name)
    platform_transformers.warn_of_what_is_gone()
    assert f"has no {owner.__name__}.{name}" in caplog.text and loss in caplog.text


def make(**flags):
    torch.manual_seed(3)
    model = ZooForCausalLM(ZooConfig(**{**SIZES, **flags})).eval()
    randomize(model)
    return model


def tokens():
    return torch.randint(6, 101, (2, 11), generator=torch.Generator().manual_seed(7))


def test_without_the_table_of_causal_models(monkeypatch, caplog):
    monkeypatch.setattr(platform_transformers, "logger", logging.getLogger("gone"))
    monkeypatch.setattr(logging.Logger, "warning_once", logging.Logger.warning, raising=False)
    monkeypatch.delattr(modeling_auto, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    platform_transformers.enter_among_causal_models(ZooForCausalLM)
    assert "do not train with label_smoothing_factor" in caplog.text


@torch.no_grad()
def test_windows_without_a_tensor(monkeypatch):
    """A cache whose layers know no tensor of their window gives the same tokens."""
    model = make(layer_types=[SLIDING] * 3, sliding_window=4)
    expected = model.generate(tokens(), max_new_tokens=6, do_sample=False)
    start = DynamicSlidingWindowLayer.__init__

    def without(self, *args, **kwargs):
        start(self, *args, **kwargs)
        del self._sliding_window_tensor

    monkeypatch.setattr(DynamicSlidingWindowLayer, "__init__", without)
    assert torch.equal(model.generate(tokens(), max_new_tokens=6, do_sample=False), expected)


@pytest.mark.parametrize("flags", [{}, LATENT], ids=["grouped", "latent"])
@torch.no_grad()
def test_a_cache_without_a_config_and_without_a_class_to_replicate(flags, monkeypatch):
    """It keeps transformers' layers, and the numbers."""
    model, inputs = make(**flags), tokens()
    whole = model(inputs).logits
    monkeypatch.setattr(platform_transformers, "getattr", lambda owner, name, default: default, raising=False)
    cache = DynamicCache()
    model(inputs[:, :-1], past_key_values=cache)
    found = model(inputs[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(found[:, -1], whole[:, -1], rtol=1e-4, atol=1e-4)
    assert type(cache.layers[0]).__module__.startswith("transformers.")


def test_a_stage_that_does_not_say_so(tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "whole")
    model.model.layers[0] = nn.Identity()
    with pytest.raises(ValueError, match="some of the layers only, and transformers .* save the model without pp_size"):
        model.save_pretrained(tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


def test_a_second_table_that_cannot_be_resized(monkeypatch):
    model = make(hidden_size_per_layer_input=7, vocab_size_per_layer_input=101)
    monkeypatch.setattr(platform_transformers, "getattr", lambda owner, name, default: default, raising=False)
    with pytest.raises(ValueError, match="no PreTrainedModel._get_resized_embeddings"):
        platform_transformers.resized_embedding(model, None)


@torch.no_grad()
def test_experts_of_other_ranks_have_no_part_in_one_token(monkeypatch):
    """By their ids alone, whatever marks a module as one rank's: the interface's own sum, to the last bit."""
    layer = next(module for module in make(**EXPERTS).modules() if isinstance(module, mlp_experts.Experts))
    layer.config._experts_implementation = "grouped_mm"
    ran, real = [], ops_experts.loop_single_token
    monkeypatch.setattr(ops_experts, "loop_single_token", lambda *args: ran.append(1) or real(*args))
    token, nobody = torch.randn(1, layer.hidden_dim), layer.num_experts
    for ids in ([[0, nobody]], [[nobody, 1]], [[nobody, nobody]], [[1, 2]]):
        ids = torch.tensor(ids)
        weights = torch.rand(1, 2).masked_fill(ids == nobody, 0.0)
        expected = real(layer, token, ids.clamp(max=nobody - 1), weights)
        assert torch.equal(layer(token, ids, weights), expected)
    assert len(ran) == 4


@pytest.mark.parametrize("flags", [{"initializer.embedding_range": 1.0}, {"initializer.cutoff": 2.0}], ids=str)
def test_a_table_from_a_checkpoint_keeps_its_padding_row(flags, tmp_path):
    """By transformers' own `init`, whatever it marks loaded tensors with."""
    model = make(pad_token_id=4, **flags)
    assert model.model.embed_tokens.weight[4].abs().max() > 0
    model.save_pretrained(tmp_path)
    again = ZooForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)
    fresh = ZooForCausalLM(ZooConfig(**{**SIZES, "pad_token_id": 4}, **flags))
    table = fresh.model.embed_tokens.weight
    assert table[4].abs().max() == 0 and table[5].abs().max() > 0
