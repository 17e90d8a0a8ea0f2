"""Healing with one layer in memory: each part learns what it would learn alone, and a run that stops goes on."""

import json
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from surgery_models import STORIES, TEXT

from conversion import load
from zoo.surgery import heal, healing, operate
from zoo.surgery.healing_streamed import Part
from zoo.surgery.operation import SurgeryError
from zoo.surgery.texts import read_text

CHANGE = {"num_key_value_heads": 2}
STEPS, RATE = 6, 1e-3


@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text(TEXT.read_text()[:30_000])
    return path


def changed(target, short, **options):
    operate(STORIES, target, CHANGE, calibrate=short, **options)
    return target


def run(target, short, **options):
    given = {"steps": 0, "layerwise": STEPS, "learning_rate": RATE, "streamed": True}
    return heal(target, STORIES, short, **{**given, **options})


def learned_alone(teacher, student, rows):
    """The weights of each layer's attention after the steps, by a loop over modules that are called by hand."""
    read, gave, contexts, weights = [], [], [], {}

    def keep(module, args, kwargs, output):
        read.append(args[0] if args else kwargs.pop("hidden_states"))
        gave.append(output[0])
        contexts.append((args[1:], kwargs))

    handles = [layer.self_attn.register_forward_hook(keep, with_kwargs=True) for layer in teacher.model.layers]
    with torch.no_grad():
        teacher.model(rows, use_cache=False)
        start = len(read)
        teacher.model(rows[:4], use_cache=False)  # what a call of four rows gets beside the states
    for handle in handles:
        handle.remove()
    for number, layer in enumerate(student.model.layers):
        attention = deepcopy(layer.self_attn).requires_grad_(True)
        parameters = list(attention.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.95), weight_decay=0)
        args, kwargs = contexts[start + number]
        for step in range(STEPS):
            along = max(0, step - 10)
            assert along == 0  # all of it is warm-up
            optimizer.param_groups[0]["lr"] = 3 * RATE * (step + 1) / 10
            some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(step))[:4]
            output = attention(read[number][some], *args, **kwargs)[0]
            error = (output - gave[number][some]).square().sum() / gave[number][some].square().sum()
            optimizer.zero_grad()
            error.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        weights |= {
            f"model.layers.{number}.self_attn.{name}": one.detach() for name, one in attention.named_parameters()
        }
    return weights


def test_each_part_learns_what_it_would_alone(tmp_path, short):
    target = changed(tmp_path / "new", short)
    student, teacher = load(target, "float32"), load(STORIES, "float32")
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    rows = read_text(short, STORIES, student.config).to_learn().reshape(-1, 256)
    expected = learned_alone(teacher.eval(), student.eval(), rows)
    report = run(target, short)
    assert report.healed.divergence < report.after.divergence
    found = load(target, "float32").state_dict()
    for name, tensor in found.items():
        if name in expected:
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
            assert not torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor, before[name]), name
    assert not (target / ".healing").exists() and report.healing[-1]["stages"][0]["loss"] == "outputs"


def test_stopped_at_a_part_it_goes_on_with_it(tmp_path, short, monkeypatch):
    whole, broken = (changed(tmp_path / name, short, dtype="bfloat16") for name in ("whole", "broken"))
    expected = run(whole, short)
    learn = Part.train

    def stopped(self, *args):
        if self.place == "2.mixer":
            raise KeyboardInterrupt
        learn(self, *args)

    monkeypatch.setattr(Part, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(broken, short)
    begun = []
    monkeypatch.setattr(Part, "train", lambda self, *args: (begun.append(self.place), learn(self, *args)))
    found = run(broken, short)
    assert begun == ["2.mixer", "3.mixer", "4.mixer"]
    assert found.before == expected.before and found.after == expected.after and found.healed == expected.healed
    ours, theirs = (load(folder).state_dict() for folder in (broken, whole))
    assert all(torch.equal(ours[name], tensor) and tensor.dtype == torch.bfloat16 for name, tensor in theirs.items())


def test_what_needs_more_than_a_layer_is_refused(tmp_path, short, monkeypatch, zoo):
    target = changed(tmp_path / "new", short)
    monkeypatch.setattr(healing, "needs_streaming", lambda student: True)
    with pytest.raises(SurgeryError, match="steps=5: healing on logits holds both models, 0.0 GiB; --steps 0"):
        run(target, short, steps=5, streamed=None)
    assert not (target / ".healing").exists()
    monkeypatch.undo()
    code, _, said = zoo("heal", target, "--teacher", STORIES, "--text", short, "--steps", 3, "--streamed")
    assert code == 1 and "--steps 0 --layerwise 80 heals a layer at a time" in said
    operate(STORIES, tmp_path / "gone", {"num_hidden_layers": 4}, layers=[2])
    with pytest.raises(SurgeryError, match="the teacher has none of the changed parts"):
        run(tmp_path / "gone", short)


PROGRAM = """
import json, resource, sys, torch
from zoo.surgery import heal
rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids = torch.randint(1000, (16, 64), generator=torch.Generator().manual_seed(0))
heal(sys.argv[2], sys.argv[1], ids, steps=0, layerwise=2, streamed=True)
print(json.dumps([rest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


@pytest.mark.long
def test_a_model_larger_than_the_memory_that_heals_it(tmp_path):
    from test_surgery_streaming import SIZES

    from configuration_zoo import ZooConfig
    from modeling_zoo import ZooForCausalLM

    config = ZooConfig(**SIZES | {"num_hidden_layers": 24})
    model = ZooForCausalLM(config)
    size = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(tmp_path / "large", max_shard_size="300MB")
    del model
    operate(tmp_path / "large", tmp_path / "new", {"attn_output_gate": "headwise"})
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "large"), str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rest, peak = (1024 * number for number in json.loads(done.stdout.splitlines()[-1]))
    assert peak - rest < size / 2, (peak - rest) / size
