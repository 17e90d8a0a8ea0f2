"""What weight decay pulls towards zero: what Trainer does, but vectors and decays."""

import copy

import pytest
import torch
from combinations import EXPERTS, FULL, HEADS, LINEAR, ROWS, SIZES
from random_models import randomize
from transformers import Trainer, TrainingArguments
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM, get_decay_parameter_names, parameter_groups

MAMBA = {"linear_attention_type": "mamba2", "layer_types": [LINEAR, FULL, LINEAR], **HEADS}
MAMBA |= {"linear_key_head_dim": 7, "linear_num_value_heads": 8, "attention_sinks": "all", **EXPERTS}
# What papers spare or never decayed, by the end of the name.
NEVER = ("A_log", ".D", "sinks", "recurrent_param", ".base", ".scale", "per_expert_scale", "alpha_p", "alpha_n")
NEVER += ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2", "value_weights", "correct_output_scale")
NEVER += ("res.query",)


@pytest.mark.parametrize("group", [group for group in ROWS if group != "stray"])
def test_it_is_what_trainer_decays_but_vectors_and_decays(group):
    for row in ROWS[group]:
        with torch.device("meta"):
            model = ZooForCausalLM(ZooConfig(**{**SIZES, **row}))
        # A tied head is the table once more.
        theirs = set(Trainer.get_decay_parameter_names(None, model)) & dict(model.named_parameters()).keys()
        ours = set(get_decay_parameter_names(model))
        assert ours <= theirs
        assert all(name.endswith(NEVER) for name in theirs - ours)
        assert not any(name.endswith(NEVER) for name in ours)


class DecayingTrainer(Trainer):
    def get_decay_parameter_names(self, model):
        return model.get_decay_parameter_names()


def make():
    torch.manual_seed(5)
    model = ZooForCausalLM(ZooConfig(**{**SIZES, **MAMBA}))
    randomize(model)
    return model


def moved(model, start):
    """Names of the parameters that differ from those of `start`."""
    pairs = zip(model.named_parameters(), start.parameters(), strict=True)
    return {name for (name, value), before in pairs if not torch.equal(value, before)}


@pytest.mark.parametrize("way", ["trainer", "trainer of a folder", "groups"])
def test_nothing_else_moves_where_nothing_is_learned(way, tmp_path):
    """A step without gradients is decay alone."""
    start = make()
    model = copy.deepcopy(start)
    if way == "trainer of a folder":
        model.save_pretrained(tmp_path / "model")
        names = ("configuration_zoo.ZooConfig", "modeling_zoo.ZooForCausalLM")
        config, model_class = (get_class_from_dynamic_module(name, str(tmp_path / "model")) for name in names)
        model = model_class.from_pretrained(tmp_path / "model", config=config.from_pretrained(tmp_path / "model"))
        assert type(model) is not ZooForCausalLM
    if way == "groups":
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.5), lr=0.1)
    else:
        options = {"weight_decay": 0.5, "learning_rate": 0.1, "use_cpu": True, "report_to": "none"}
        args = TrainingArguments(str(tmp_path / "out"), **options)
        optimizer = DecayingTrainer(model=model, args=args).create_optimizer()
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    found = moved(model, start)
    assert found == set(get_decay_parameter_names(start))
    assert not any(name.endswith(NEVER) for name in found) and any(name.endswith("in_proj.weight") for name in found)
    assert any(name.endswith("A_log") for name, _ in start.named_parameters())
