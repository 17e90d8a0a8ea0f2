"""The loss of the next token: z-loss by hand, chunks against the whole, accumulation, what logits are returned."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from places import ROOT, SUPPORT
from random_models import randomize

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM
from modeling_zoo.train_loss import log_normalizer_squares

SIZES = {
    "vocab_size": 67,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
}
EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "router_aux_loss_coef": 0.05,
    "router_z_loss_coef": 0.02,
}
HEADS = {
    "plain": {},
    "z-loss": {"output_z_loss_coef": 0.03},
    "bias, scale and cap": {"lm_head_bias": True, "logits_scaling": 1.7, "final_logit_softcapping": 3.0},
    "everything": {
        **{"lm_head_bias": True, "logits_scaling": 0.7, "final_logit_softcapping": 2.5},
        **{"output_z_loss_coef": 0.1, "suppressed_token_ids": [60, 61]},
    },
    "tied": {"tie_word_embeddings": True, "output_z_loss_coef": 0.03},
    "narrow": {"embedding_size": 10},
    "experts": EXPERTS,
}


def make(**flags):
    model = ZooForCausalLM(ZooConfig(**{**SIZES, **flags}))
    randomize(model)
    return model.train()


def batch(rows=3, length=19):
    """Tokens and labels with prompts, holes and a padded end that are no targets."""
    tokens = torch.randint(0, 60, (rows, length))
    labels = tokens.clone()
    labels[0, :7] = labels[1, 9] = labels[2, -6:] = -100
    return tokens, labels


def step(model, *arguments, **options):
    """Loss and gradients of one call."""
    model.zero_grad()
    outputs = model(*arguments, **options)
    outputs.loss.backward()
    return outputs, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_step(ours, theirs):
    torch.testing.assert_close(ours[0].loss, theirs[0].loss, rtol=3e-7, atol=0)
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(
            ours[1][name], gradient, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_z_loss_by_hand():
    logits = torch.randn(2, 3, 5) * 2
    counted = torch.tensor([[True, False, True], [True, True, False]])
    by_hand = 0.0
    for row in range(2):
        for position in range(3):
            if counted[row, position]:
                by_hand += math.log(sum(math.exp(value) for value in logits[row, position].tolist())) ** 2
    assert log_normalizer_squares(logits, counted).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("chunk", [None, 4])
def test_z_loss_is_a_mean_over_targets_in_training_only(chunk):
    """The loss with the coefficient less the loss without it is coef · mean of log² Z at the predicted positions."""
    model = make(loss_chunk_size=chunk)
    tokens, labels = batch()
    without = model(tokens, labels=labels).loss
    model.config.output_z_loss_coef = 0.25
    found = model(tokens, labels=labels).loss - without
    model.eval()
    with torch.no_grad():
        outputs = model(tokens, labels=labels)
    torch.testing.assert_close(outputs.loss, without.detach(), rtol=3e-7, atol=0)
    by_hand = []
    for row, sequence in enumerate(labels.tolist()):
        for position, target in enumerate(sequence[1:]):
            if target != -100:
                values = outputs.logits[row, position].double()
                by_hand.append(math.log(values.exp().sum()) ** 2)
    assert found.item() == pytest.approx(0.25 * sum(by_hand) / len(by_hand), rel=2e-5)


@pytest.mark.parametrize("flags", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("number", [None, 50], ids=["mean", "num_items_in_batch"])
def test_a_chunked_loss_is_the_loss(flags, number):
    model = make(**flags)
    tokens, labels = batch()
    options = {"labels": labels} | ({} if number is None else {"num_items_in_batch": torch.tensor(number)})
    whole = step(model, tokens, **options)
    for chunk in (5, 100):
        chunked = step(model, tokens, loss_chunk_size=chunk, **options)
        assert chunked[0].logits is None
        assert_same_step(chunked, whole)


def test_a_head_with_hooks_is_run_again_for_its_gradient():
    """What stands around the head has to see every call: its gradient is autograd's own."""
    model = make(output_z_loss_coef=0.1)
    calls = []
    model.lm_head.register_forward_hook(lambda module, args, output: calls.append(len(output)) or output * 0.5)
    tokens, labels = batch()
    whole = step(model, tokens, labels=labels)
    calls.clear()
    assert_same_step(step(model, tokens, labels=labels, loss_chunk_size=8), whole)
    assert max(calls) == 8 and len(calls) > 2 * (labels[:, 1:] != -100).sum() // 8


def test_a_chunked_loss_of_an_adapted_head():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make(), LoraConfig(r=3, target_modules=["lm_head", "q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tokens, labels = batch()
    gradients = []
    for chunk in (None, 6):
        model.zero_grad()
        loss = model(input_ids=tokens, labels=labels, loss_chunk_size=chunk).loss
        loss.backward()
        learned = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
        gradients.append({"loss": loss.detach()} | {name: gradient.clone() for name, gradient in learned.items()})
    assert any("lm_head" in name for name in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-6)


def test_logits_are_returned_where_they_are_asked_for():
    model = make(loss_chunk_size=4)
    tokens, labels = batch()
    assert model(tokens, labels=labels).logits is None
    some = model(tokens, labels=labels, logits_to_keep=2)
    assert some.logits.shape == (3, 2, 67)
    torch.testing.assert_close(some.loss, model(tokens, labels=labels).loss)
    assert model(tokens).logits.shape == (3, 19, 67)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, labels=labels).loss, some.loss.detach())
    model.eval()
    assert model(tokens, labels=labels).logits.shape == (3, 19, 67)


def test_shifted_labels_and_rows_without_a_target():
    model = make(loss_chunk_size=4)
    tokens, labels = batch()
    shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    given = model(tokens, labels=labels, shift_labels=shifted).loss
    torch.testing.assert_close(given, model(tokens, labels=labels).loss)
    nothing = model(tokens, labels=torch.full_like(labels, -100), num_items_in_batch=torch.tensor(7)).loss
    nothing.backward()
    assert nothing == 0 and model.model.norm.weight.grad.abs().max() == 0


def test_a_loss_function_of_the_caller_is_not_passed_over():
    model = make()
    model.loss_function = lambda logits, labels, **kwargs: logits.sum() * 0 + 5
    tokens, labels = batch()
    assert model(tokens, labels=labels).loss == 5
    with pytest.raises(ValueError, match="loss_chunk_size=4 .* leave one of them out"):
        model(tokens, labels=labels, loss_chunk_size=4)


def test_bfloat16_gradients_are_summed_in_float32():
    """Against float32 the chunks are not further away than the whole."""
    model = make(output_z_loss_coef=0.01)
    tokens, labels = batch(6, 40)
    exact = step(model, tokens, labels=labels)[1]["lm_head.weight"]
    model.to(torch.bfloat16)
    errors = []
    for chunk in (None, 4):
        found = step(model, tokens, labels=labels, loss_chunk_size=chunk)[1]["lm_head.weight"].float()
        errors.append((found - exact).norm() / exact.norm())
    assert errors[1] < 1.1 * errors[0] < 0.05


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("flags", [{"output_z_loss_coef": 0.05}, EXPERTS | {"router_aux_loss_coef": 0.0}], ids=str)
def test_micro_batches_add_up(flags, chunk):
    """With the number of targets of the whole batch, z-losses included, the parts' losses and gradients are the sum."""
    model = make(loss_chunk_size=chunk, **flags)
    tokens, labels = batch()
    number = (labels[:, 1:] != -100).sum()
    whole = step(model, tokens, labels=labels, num_items_in_batch=number)
    model.zero_grad()
    total = 0.0
    for row in range(3):
        here = slice(row, row + 1)
        loss = model(tokens[here], labels=labels[here], num_items_in_batch=number).loss
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(total, whole[0].loss.detach(), rtol=1e-6, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("field", ["output_z_loss_coef", "router_aux_loss_coef", "router_z_loss_coef"])
def test_coefficients_are_checked(field):
    with pytest.raises(Exception, match=f"{field}=-0.1 must not be negative"):
        ZooConfig(**SIZES, **{field: -0.1})
    if "router" in field:
        with pytest.raises(Exception, match=f"{field}=0.1 only means something with a 'sparse' layer"):
            ZooConfig(**SIZES, **{field: 0.1})


def launch(folder, *arguments):
    """Two ranks of fsdp_loss_worker.py, and what each found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", str(SUPPORT / "fsdp_loss_worker.py"), str(folder)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(folder / f"found{rank}.pt") for rank in (0, 1)]
    return [
        ([(SimpleNamespace(**outputs), gradients) for outputs, gradients in found], refused) for found, refused in ranks
    ]


def make_batches(model, folder):
    """A folder of the model, and two batches beside it: one of 32 targets, one of 2, which are a single chunk."""
    model.save_pretrained(folder)
    rows = torch.randint(0, 60, (2, 1, 33))
    batches = [(rows[0], rows[0].clone()), (rows[1], rows[1].clone())]
    batches[1][1][:, :-2] = -100
    torch.save(batches, folder / "batches.pt")
    return batches


@pytest.mark.long
@pytest.mark.parametrize("name", ["everything", "tied", "experts", "further tokens"])
def test_a_chunked_loss_over_fsdp(name, tmp_path):
    """Each rank has its own number of chunks; gradients are the mean of both ranks', step by step."""
    model = make(**{**HEADS, "further tokens": {"num_mtp_layers": 2}}[name])
    batches = make_batches(model, tmp_path)
    first, second = (step(model, tokens, labels=labels) for tokens, labels in batches)
    mean = {key: (gradient + second[1][key]) / 2 for key, gradient in first[1].items()}
    for (outputs, _), (results, refused) in zip((first, second), launch(tmp_path), strict=True):
        for found in results:
            assert_same_step(found, (outputs, mean))
        assert [found.logits is None for found, _ in results] == [True, True, False]
        # Tied, the head is no unit of its own.
        assert (name == "tied" and refused is None) or "logits_to_keep=2 calls the head twice" in refused


@pytest.mark.long
def test_a_chunked_loss_over_tensor_parallel_ranks(tmp_path):
    """The vocabulary is split: each chunk's logits are gathered, in the backward pass once more."""
    model = make(vocab_size=68, num_attention_heads=4, num_key_value_heads=4, output_z_loss_coef=0.03)
    tokens, labels = make_batches(model, tmp_path)[0]
    expected = step(model, tokens, labels=labels)
    for results, refused in launch(tmp_path, "2"):
        assert refused is None
        for found in results:
            assert_same_step(found, expected)


@pytest.mark.long
def test_memory_of_a_step():
    """The benchmark's own numbers."""
    command = [sys.executable, "benchmarks/loss.py", "--vocabulary", "128000", "--tokens", "2048", "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--json"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["chunked"]["bytes"] < 0.35 * results["plain"]["bytes"]
    assert results["chunked"]["loss"] == pytest.approx(results["transformers"]["loss"], rel=1e-6)
    assert results["chunked"]["norm"] == pytest.approx(results["transformers"]["norm"], rel=1e-5)
