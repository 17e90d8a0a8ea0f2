"""Training with the ecosystem's own loops: transformers' Trainer, accelerate, TRL."""

import copy
import json

import pytest
import torch
from combinations import EXPERTS, FULL, HEADS, INDEXED, INDEXER, LATENT, LINEAR, SIZES, SLIDING
from places import STORIES
from random_models import randomize
from samples import only
from training_rows import documents, pad_right
from transformers import (
    AutoTokenizer,
    DataCollatorWithFlattening,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM

pytest.importorskip("accelerate")

BALANCE, ROUTER_Z = {"router_aux_loss_coef": 0.05}, {"router_z_loss_coef": 0.02}
LOSSES = {
    "plain": {},
    "z-loss": {"output_z_loss_coef": 0.05},
    "chunked": {"output_z_loss_coef": 0.05, "loss_chunk_size": 7, "final_logit_softcapping": 5.0},
    "router z-loss": EXPERTS | ROUTER_Z,
    "balance": EXPERTS | BALANCE,
    "indexer": {**LATENT, **INDEXER, "q_lora_rank": 18, "layer_types": [INDEXED] * 3, "indexer_loss_coef": 9.0},
}
MODELS = {
    "full": {},
    "sliding": {"layer_types": [SLIDING, FULL, SLIDING], "sliding_window": 4},
    "latent": LATENT,
    "experts": EXPERTS | ROUTER_Z,
    "linear": {"linear_attention_type": "gated_delta_net", "layer_types": [LINEAR, FULL, LINEAR], **HEADS},
    "state space": {
        **{"linear_attention_type": "mamba2", "layer_types": [LINEAR, FULL, LINEAR], **HEADS},
        **{"linear_key_head_dim": 7, "linear_num_value_heads": 8},
    },
}


def make(**flags):
    torch.manual_seed(5)
    model = ZooForCausalLM(ZooConfig(**{**SIZES, **flags}))
    randomize(model)
    # Steps that change something, but not everything.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.6)
    return model


def remote(model, folder):
    """The same model by the code of a folder it was saved to."""
    model.save_pretrained(folder)
    model_class = get_class_from_dynamic_module("modeling_zoo.ZooForCausalLM", str(folder))
    config = get_class_from_dynamic_module("configuration_zoo.ZooConfig", str(folder)).from_pretrained(folder)
    assert model_class is not ZooForCausalLM
    return model_class.from_pretrained(folder, config=config)


def fit(model, folder, rows=None, collator=pad_right, **arguments):
    """The trained model and what the Trainer logged."""
    settings = {
        **{"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 0.05, "optim": "sgd", "logging_steps": 1},
        **{"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "report_to": "none", "save_strategy": "no"},
        **{"disable_tqdm": True, "use_cpu": True, "train_sampling_strategy": "sequential", "seed": 1},
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **settings | arguments),
        train_dataset=rows or documents(),
        data_collator=collator,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=arguments.get("resume_from_checkpoint"))
    return trainer.model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def furthest(model, other):
    """The largest difference between the parameters of two models."""
    pairs = zip(model.named_parameters(), other.named_parameters(), strict=True)
    return max((mine - theirs).abs().max().item() for (_, mine), (_, theirs) in pairs)


# -- transformers' Trainer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", only(["chunked", "balance", "indexer"], LOSSES))
def test_accumulation_changes_nothing(name, tmp_path):
    """Eight rows at once, or two by two over four backward passes: the same steps and the same logged loss."""
    start = make(**LOSSES[name])
    whole, losses = fit(copy.deepcopy(start), tmp_path)
    parts, found = fit(copy.deepcopy(start), tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    moved = furthest(whole, start)
    assert moved > 1e-3
    # The losses of routers and indexers are no sums over targets: those of the parts are averaged by their targets.
    averaged = name in ("balance", "indexer")
    assert furthest(whole, parts) < (0.05 if averaged else 2e-5) * moved
    assert found == pytest.approx(losses, rel=2e-2 if averaged else 1e-5)


def test_every_coefficient_reaches_the_trainer_s_loss(tmp_path):
    """The first logged loss is the model's own, auxiliary terms included, and differs from the plain one."""
    rows = documents()
    number = sum(label != -100 for row in rows for label in row["labels"][1:])
    plain = make(**EXPERTS).train()(**pad_right(rows), num_items_in_batch=torch.tensor(number)).loss.item()
    for flags in ({"output_z_loss_coef": 0.05}, BALANCE, ROUTER_Z):
        model = make(**EXPERTS, **flags)
        expected = model.train()(**pad_right(rows), num_items_in_batch=torch.tensor(number)).loss.item()
        logged = fit(model, tmp_path)[1][0]
        assert logged == pytest.approx(expected, rel=1e-5) and abs(expected - plain) > 1e-3


@pytest.mark.parametrize("name", only(["experts"], MODELS))
def test_checkpointing_changes_nothing(name, tmp_path):
    start = make(**MODELS[name])
    plain, losses = fit(copy.deepcopy(start), tmp_path)
    saving, found = fit(copy.deepcopy(start), tmp_path, gradient_checkpointing=True)
    assert furthest(plain, start) > 1e-3 and furthest(plain, saving) < 1e-6
    assert found == pytest.approx(losses, rel=1e-6)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", only(["latent"], MODELS))
@pytest.mark.parametrize("pure", [False, True], ids=["autocast", "bfloat16 weights"])
def test_bfloat16(name, pure, tmp_path):
    """The steps go where float32's go."""
    start = make(**MODELS[name])
    _, losses = fit(copy.deepcopy(start), tmp_path, max_steps=6)
    model = copy.deepcopy(start)
    trained, found = fit(model.to(torch.bfloat16) if pure else model, tmp_path, max_steps=6, bf16=not pure)
    floats = {parameter.dtype for name, parameter in trained.named_parameters() if "A_log" not in name}
    assert floats == {torch.bfloat16 if pure else torch.float32}
    assert found == pytest.approx(losses, rel=0.05) and found[-1] < found[0]


@pytest.mark.parametrize("name", MODELS)
def test_autocast_with_a_cache(name):
    """Steps over a cache under autocast stay as near to float32 as autocast itself is."""
    model = make(**MODELS[name]).eval()
    inputs = pad_right(documents())["input_ids"][:, :10]
    with torch.no_grad():
        exact = model(inputs).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            whole, cache, steps = model(inputs, use_cache=True).logits, None, []
            for index in range(10):
                outputs = model(inputs[:, index : index + 1], past_key_values=cache, use_cache=True)
                cache = outputs.past_key_values
                steps.append(outputs.logits)
    for found in (whole, torch.cat(steps, dim=1)):
        assert (found.float() - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("name", only(["sliding", "linear"], MODELS))
def test_packed_rows_train_as_rows_apart(name, tmp_path):
    """Documents in one row, told apart by their positions: loss, gradients and steps are those of a padded batch."""
    start = make(**MODELS[name])
    apart, losses = fit(copy.deepcopy(start), tmp_path)
    packed, found = fit(copy.deepcopy(start), tmp_path, collator=DataCollatorWithFlattening())
    moved = furthest(apart, start)
    assert moved > 1e-3 and furthest(apart, packed) < 1e-3 * moved
    assert found == pytest.approx(losses, rel=1e-5)


def test_packing_by_the_trainer_in_chunks(tmp_path):
    flags = MODELS["linear"] | {"loss_chunk_size": 5}
    apart, losses = fit(make(**flags), tmp_path)
    packed, found = fit(make(**flags), tmp_path, collator=DataCollatorWithFlattening())
    assert furthest(apart, packed) < 1e-5 and found == pytest.approx(losses, rel=1e-5)


def test_evaluation_and_label_smoothing_have_logits(tmp_path):
    """A chunked loss is for training steps: metrics and smoothed labels see every logit."""
    shapes = []
    trainer = Trainer(
        model=make(loss_chunk_size=5, output_z_loss_coef=0.1),
        args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True),
        eval_dataset=documents(),
        data_collator=pad_right,
        compute_metrics=lambda prediction: shapes.append(prediction.predictions.shape) or {},
    )
    trainer.remove_callback(PrinterCallback)
    loss = trainer.evaluate()["eval_loss"]
    assert shapes[0][-1] == SIZES["vocab_size"]
    with torch.no_grad():
        assert loss == pytest.approx(trainer.model.eval()(**pad_right(documents())).loss.item(), rel=1e-5)
    start = make(loss_chunk_size=5)
    smooth = fit(copy.deepcopy(start), tmp_path, label_smoothing_factor=0.1)[1]
    start.config.loss_chunk_size = None
    assert smooth == pytest.approx(fit(start, tmp_path, label_smoothing_factor=0.1)[1], rel=1e-6)


def test_a_run_goes_on_where_it_stopped(tmp_path):
    """Saved by the Trainer after two steps and resumed by a fresh process' model: the weights of four steps."""
    start = make(**EXPERTS, **BALANCE)
    rows = documents(16)
    options = {"optim": "adamw_torch", "learning_rate": 1e-3, "per_device_train_batch_size": 4, "max_steps": 4}
    whole, _ = fit(remote(start, tmp_path / "base"), tmp_path / "a", rows, **options)
    fit(copy.deepcopy(start), tmp_path / "b", rows, **options | {"save_strategy": "steps", "save_steps": 2})
    checkpoint = tmp_path / "b" / "checkpoint-2"
    assert json.loads((checkpoint / "config.json").read_text())["auto_map"]
    again, _ = fit(
        remote(make(**EXPERTS, **BALANCE), tmp_path / "other"),
        *(tmp_path / "c", rows),
        **options | {"resume_from_checkpoint": str(checkpoint)},
    )
    assert furthest(whole, start) > 1e-3 and furthest(whole, again) < 1e-6


# -- accelerate -------------------------------------------------------------------------------------------------------


def test_accelerate_s_loop(tmp_path):
    """Its loop with accumulation and clipping gives plain torch's steps; what it saves loads again."""
    from accelerate import Accelerator

    start = make(**EXPERTS, **ROUTER_Z)
    rows = [pad_right(documents()[index : index + 4]) for index in (0, 4)]
    numbers = sum((batch["labels"][:, 1:] != -100).sum() for batch in rows)

    def optimizer_of(model):
        return torch.optim.AdamW(model.parameters(), lr=1e-3)

    plain = copy.deepcopy(start).train()
    optimizer = optimizer_of(plain)
    for batch in rows:
        plain(**batch, num_items_in_batch=numbers).loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    optimizer.step()

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    mine = copy.deepcopy(start).train()
    model, optimizer = accelerator.prepare(mine, optimizer_of(mine))
    for batch in rows:
        with accelerator.accumulate(model):
            loss = model(**batch, num_items_in_batch=numbers).loss
            # accelerate divides by the number of passes, which the count of targets has done.
            accelerator.backward(loss * accelerator.gradient_accumulation_steps)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    assert furthest(plain, start) > 1e-4 and furthest(plain, model) < 1e-6
    accelerator.unwrap_model(model).save_pretrained(tmp_path)
    assert furthest(ZooForCausalLM.from_pretrained(tmp_path), model) == 0


# -- TRL --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():

    found = AutoTokenizer.from_pretrained(STORIES)
    found.pad_token = found.unk_token
    return found


def spoken(flags):
    """A model with the tokenizer's vocabulary."""
    return make(**flags, vocab_size=512, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=128)


PROMPTS = [
    {"prompt": f"Once upon a time there was a {name}.", "completion": f" The {name} liked to {verb}."}
    for name, verb in (("girl", "run"), ("dog", "bark"), ("bird", "fly"), ("boy with a red ball", "play in the park"))
]
TRL_MODELS = {
    "capped and scaled": {"final_logit_softcapping": 4.0, "logits_scaling": 1.5},
    "latent": LATENT,
    "experts": EXPERTS | BALANCE,
    "linear": MODELS["linear"],
}


def quiet(trainer):
    trainer.remove_callback(PrinterCallback)
    return trainer


def trl_settings(kind, folder, **more):
    options = {
        **{"max_steps": 6, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "learning_rate": 5e-3},
        **{"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "bf16": False},
        "max_length": 64,
    }
    return kind(output_dir=str(folder), **options | more)


@pytest.mark.parametrize("name", only(["experts"], TRL_MODELS))
def test_supervised_fine_tuning(name, tokenizer, tmp_path):
    """TRL multiplies by the head itself: its loss is the model's, cap and scale included, and falls."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model = remote(spoken(TRL_MODELS[name]), tmp_path / "base")
    rows = datasets.Dataset.from_list(PROMPTS)
    trainer = quiet(
        trl.SFTTrainer(
            model=model,
            args=trl_settings(trl.SFTConfig, tmp_path),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
        )  # fmt: skip
    )
    before = trainer.evaluate()["eval_loss"]
    batch = next(iter(trainer.get_eval_dataloader()))
    with torch.no_grad():
        expected = trainer.model.eval()(**batch, output_router_logits=False).loss.item()
    if name == "experts":
        outputs = trainer.model(**batch, output_router_logits=True)
        expected += model.config.router_aux_loss_coef * outputs.aux_loss.item()
    assert before == pytest.approx(expected, rel=1e-4)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * before


def test_packed_supervised_fine_tuning(tokenizer, tmp_path):
    """Rows that TRL has packed into one, without padding, give the loss of the rows apart."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model = remote(spoken(MODELS["linear"]), tmp_path / "base")
    rows = datasets.Dataset.from_list(PROMPTS)
    losses = []
    for more in (
        {},
        {"packing": True, "eval_packing": True, "max_length": 256},
        {"padding_free": True, "max_length": None},
    ):
        trainer = trl.SFTTrainer(
            model=copy.deepcopy(model), args=trl_settings(trl.SFTConfig, tmp_path, **more), train_dataset=rows,
            eval_dataset=rows, processing_class=tokenizer,
        )  # fmt: skip
        losses.append(quiet(trainer).evaluate()["eval_loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", ["capped and scaled", "latent", "linear"])
def test_preference_optimisation(name, tokenizer, tmp_path):
    """At the start neither answer is preferred, ln 2; after some steps the chosen one is. A LoRA, its own reference."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from peft import LoraConfig

    model = remote(spoken(TRL_MODELS[name]), tmp_path / "base")
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": row["completion"][::-1]} for row in PROMPTS
    ]
    rows = datasets.Dataset.from_list(pairs)
    trainer = quiet(
        trl.DPOTrainer(
            model=model,
            args=trl_settings(trl.DPOConfig, tmp_path, max_steps=8),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=8, **model.lora_targets()),
        )  # fmt: skip
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(0.693147, rel=1e-4)
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.6 and after["eval_rewards/accuracies"] == 1.0
