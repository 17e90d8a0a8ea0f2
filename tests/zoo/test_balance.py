"""Experts while they learn: what the callback counts, how it moves the bias, what is said where nothing balances."""

import json
import logging
import subprocess
import sys

import pytest
import torch
from transformers import Trainer, TrainingArguments

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM
from zoo.training import ExpertBalance
from zoo.training.balance import ExpertLoad, unbalanced

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse"], "use_score_correction_bias": True}
LATENT = {"attention_type": "latent", "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}


def make(**fields):
    torch.manual_seed(0)
    return ZooForCausalLM(ZooConfig(**{**SIZES, **EXPERTS, **SPARSE, **fields}))


def trainer_of(model, folder, callback, **arguments):
    rows = torch.randint(0, 50, (16, 12), generator=torch.Generator().manual_seed(0))
    said = {"max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none"}
    said |= {"output_dir": str(folder), "save_strategy": "no", "disable_tqdm": True, "learning_rate": 0.0}
    data = [{"input_ids": row, "labels": row} for row in rows]
    return Trainer(model=model, args=TrainingArguments(**said | arguments), train_dataset=data, callbacks=[callback])


def test_the_load_is_what_the_routers_choose():
    model = make().train()
    counted, chosen = ExpertLoad(model), {}
    for name, router in counted.routers.items():
        router.register_forward_hook(lambda module, args, output, name=name: chosen.update({name: output}))
    tokens = torch.randint(0, 50, (2, 9))
    model(tokens)
    found = counted.report()
    busiest, entropy = [], []
    for logits, _, experts in chosen.values():
        counts = [sum(expert == choice for choice in experts.flatten().tolist()) for expert in range(4)]
        busiest.append(max(counts) / (sum(counts) / 4))
        entropy.append(torch.distributions.Categorical(logits=logits).entropy().mean().item())
    assert found["experts/busiest"] == pytest.approx(max(busiest))
    assert [found[f"experts/busiest_{layer}"] for layer in (1, 2)] == pytest.approx(busiest)
    assert found["experts/entropy"] == pytest.approx(sum(entropy) / 2) and found["experts/dead"] == 0
    counted.reset()
    model.eval()(tokens)
    assert counted.report() == {}


def test_dead_experts_are_counted():
    model = make().train()
    counted = ExpertLoad(model)
    for router in counted.routers.values():
        router.e_score_correction_bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
    model(torch.randint(0, 50, (2, 9)))
    found = counted.report()
    assert (found["experts/dead"], found["experts/busiest"]) == (4, 2.0)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_trainer_moves_every_bias_once_a_step_and_logs_the_load(accumulation, tmp_path):
    model = make()
    model.model.layers[1].mlp.gate.e_score_correction_bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))
    trainer = trainer_of(model, tmp_path, ExpertBalance(0.25), gradient_accumulation_steps=accumulation)
    trainer.train()
    moved = model.model.layers[1].mlp.gate.e_score_correction_bias
    # Every token chooses the first one, more than its share: three times down.
    assert moved[0].item() == pytest.approx(9 - 3 * 0.25)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3 and all(entry["experts/busiest"] == 2.0 for entry in logged)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_experts_is_left_alone(tmp_path):
    model = ZooForCausalLM(ZooConfig(**SIZES))
    trainer = trainer_of(model, tmp_path, ExpertBalance())
    trainer.train()
    assert not any(key.startswith("experts") for entry in trainer.state.log_history for key in entry)


class Sentences(logging.Handler):
    def __init__(self):
        super().__init__()
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


def test_what_nothing_teaches_is_said_before_the_first_step(tmp_path):
    plain = ZooConfig(**SIZES, **EXPERTS)
    assert ["router_aux_loss_coef" in sentence for sentence in unbalanced(plain)] == [True]
    indexed = {**LATENT, "layer_types": ["full_attention"] + ["indexed_attention"] * 2, "index_topk": 4}
    assert ["indexer_loss_coef" in sentence for sentence in unbalanced(ZooConfig(**SIZES, **indexed))] == [True]
    for fields in (
        {**EXPERTS, "router_aux_loss_coef": 0.01},
        {**EXPERTS, **SPARSE},
        {},
        {**indexed, "indexer_loss_coef": 1.0},
    ):
        assert unbalanced(ZooConfig(**SIZES, **fields)) == []
    logger = logging.getLogger("zoo.training.balance")
    logger.addHandler(handler := Sentences())
    try:
        trainer_of(ZooForCausalLM(plain), tmp_path, ExpertBalance(), max_steps=1).train()
    finally:
        logger.removeHandler(handler)
    assert handler.said == unbalanced(plain)


@pytest.mark.long
def test_the_default_recipe_balances_the_tiny_mixture(tmp_path):
    """120 steps on Shakespeare: no expert without tokens, the busiest below twice its share; without balance above."""
    from places import ROOT

    from zoo.training import train

    recipe = {
        "model": {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_experts": 8,
                  "num_experts_per_tok": 2, "moe_intermediate_size": 96, "intermediate_size": 256},
        "tokenizer": {"kind": "bytes"},
        "data": {"files": [str(ROOT / "examples" / "corpora" / "shakespeare.txt")], "length": 96, "held_out": 0.05},
        "training": {"max_steps": 120, "per_device_train_batch_size": 8, "logging_steps": 20, "save_strategy": "no",
                     "adam_beta2": 0.98, "eval_steps": 120},
    }  # fmt: skip
    busiest = {}
    for name, overrides in (("default", ()), ("unbalanced", ("balance_rate=0.0",))):
        done = train(recipe, (*overrides, f"output_dir={tmp_path / name}"), shows=False)
        log = json.loads((tmp_path / name / "log.json").read_text())["history"]
        last = [entry for entry in log if "experts/busiest" in entry][-1]
        busiest[name] = last["experts/busiest"]
        assert done["loss"] < 2.5
        assert name != "default" or last["experts/dead"] == 0
    assert busiest["default"] <= 2 < busiest["unbalanced"], busiest


SAID = """
import sys
from configuration_zoo import ZooConfig
from configuration_zoo.fields_training import logger
from modeling_zoo import ZooForCausalLM

def model(fields):
    return ZooForCausalLM(ZooConfig(**fields))

def part(name):
    type(logger).warning_once.cache_clear()
    print("part", name, file=sys.stderr)
"""


def test_what_training_lacks_is_said_when_training_begins_and_not_before(tmp_path):
    experts = SIZES | EXPERTS
    balanced = experts | {"use_score_correction_bias": True}
    both = experts | LATENT | {"layer_types": "indexed_attention"}
    lines = [
        "part('made')", f"one = model({experts})", "one.save_pretrained(sys.argv[1])", "one.eval()",
        "part('trained')", "one.train()", "part('balanced')", f"model({balanced}).train()",
        "part('both')", f"model({both}).train()",
    ]  # fmt: skip
    command = [sys.executable, "-c", SAID + "\n".join(lines), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    remarks = ("num_experts: nothing keeps", "indexer_loss_coef: no loss")
    said = {}
    for text in done.stderr.split("part ")[1:]:
        said[text.split()[0]] = [remark for remark in remarks if remark in text]
    assert said == {"made": [], "trained": [remarks[0]], "balanced": [], "both": list(remarks)}
