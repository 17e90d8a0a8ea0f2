"""Healing: a changed model learns from its teacher, can be stopped anywhere, and ends where it would have ended."""

import json
import signal
import threading
import time

import pytest
import torch
from surgery_models import STORIES, TEXT, family_config, random_model, stories, tokens

from modeling_zoo import ZooForCausalLM
from zoo.surgery import Healing, heal, operate
from zoo.surgery.distillation import Distillation, HealingStage, plan_stages, tapped
from zoo.surgery.healing_folder import HealingFolder
from zoo.surgery.measurement import divergence, perplexity
from zoo.surgery.operation import SurgeryError
from zoo.surgery.texts import read_text

FEWER = {"num_key_value_heads": 1}
PLACES = ["0.mixer", "1.mixer"]


@pytest.fixture(scope="module")
def pair():
    """A teacher, a function that gives fresh students, and rows."""
    config = family_config("llama", 0)
    teacher = random_model(config)
    student = operate(teacher, None, FEWER, calibrate=tokens(config, 8, 32)).model
    state = {name: tensor.clone() for name, tensor in student.state_dict().items()}

    def fresh():
        student.load_state_dict(state)
        return student.requires_grad_(True)

    # They repeat, so that what is learnt from random tokens shows on the rows that are kept.
    return teacher, fresh, tokens(config, 4, 16).repeat(6, 1)


@pytest.fixture
def short(tmp_path):
    """Eighteen rows of the text."""
    path = tmp_path / "short.txt"
    path.write_text(TEXT.read_text()[:30_000])
    return path


def test_every_part_reads_what_the_teacher_s_read_and_fits_its_output(pair):
    """Against each mixer called alone."""
    teacher, fresh, rows = pair
    student = fresh()
    loop = Distillation(teacher, student, rows, PLACES, [])
    read, gave = [], []

    def keep(module, args, kwargs, output):
        read.append((args, kwargs))
        gave.append(output[0])

    handles = [layer.self_attn.register_forward_hook(keep, with_kwargs=True) for layer in teacher.model.layers]
    with torch.no_grad():
        teacher.model(rows[:4], use_cache=False)
        losses = [
            (layer.self_attn(*args, **kwargs)[0] - wanted).square().sum() / wanted.square().sum()
            for layer, (args, kwargs), wanted in list(zip(student.model.layers, read, gave, strict=True))[:2]
        ]
    for handle in handles:
        handle.remove()
    found = loop.output_loss(rows[:4])
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-5, atol=0)
    found.backward()
    moved = {name for name, one in student.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0}
    assert {name.split(".")[3] for name in moved} == {"self_attn"}  # no layer learns from another's error


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("train", "rate"), [("all", 1e-3), ("changed", 1e-3), ("lora", 3e-3)])
def test_what_learns_is_what_was_asked_and_the_divergence_falls(pair, train, rate):
    teacher, fresh, rows = pair
    student = fresh()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    start = divergence(teacher, student, rows[-4:])
    loop = Distillation(teacher, student, rows, PLACES, [HealingStage("logits", 12, rate, train)])
    best = loop.run().best
    assert best < start and best == pytest.approx(divergence(teacher, student, loop.validation), rel=1e-5)
    moved = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(".mlp." in name for name in moved) == (train != "changed")
    assert not any("lora" in name for name in student.state_dict())
    assert any("norm" in name for name in moved) == (train == "all")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("train", ["all", "lora"])
def test_stopped_and_resumed_it_ends_at_the_same_weights(pair, train):
    teacher, fresh, rows = pair
    stages = plan_stages(PLACES, 5, train, 3e-3, 4)
    whole = Distillation(teacher, fresh(), rows, PLACES, stages)
    whole.run()
    expected = {name: tensor.clone() for name, tensor in whole.student.state_dict().items()}
    for stop_at in (2, 4, 7):
        states = []
        first = Distillation(teacher, fresh(), rows, PLACES, stages)

        def stop(first=first, states=states, stop_at=stop_at):
            if len(first.progress.curve) == stop_at:
                states.append(first.state())
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            first.run(stop)
        second = Distillation(teacher, operate_again(teacher, rows), rows, PLACES, stages)
        second.restore(states[0])
        assert second.run().curve == whole.progress.curve
        for name, tensor in second.student.state_dict().items():
            assert torch.equal(tensor, expected[name]), (stop_at, name)


def test_a_new_model_shares_no_number_with_its_source(pair):
    teacher, _, rows = pair
    student = operate(teacher, None, FEWER, method="first").model
    places = {tensor.data_ptr() for tensor in teacher.state_dict().values()}
    assert not places & {tensor.data_ptr() for tensor in student.state_dict().values()}


def operate_again(teacher, rows):
    return operate(teacher, None, FEWER, method="first").model


def test_a_folder_is_stopped_by_a_signal_loads_and_goes_on(tmp_path, zoo, short):
    """The last rows of the text measure; the record, the card and --json say what was done."""
    new = tmp_path / "new"
    operate(STORIES, new, {"num_key_value_heads": 2}, method="first")
    files = sorted(path.name for path in new.iterdir())
    unhealed = ZooForCausalLM.from_pretrained(new).state_dict()
    options = {"steps": 6, "layerwise": 4, "save_every": 2}
    stop = threading.Timer(0.0, lambda: (wait_for(new / ".healing/state.pt"), signal.raise_signal(signal.SIGTERM)))
    before = signal.getsignal(signal.SIGTERM)
    stop.start()
    with pytest.raises(SurgeryError, match="the same command goes on"):
        heal(new, None, short, **options)
    assert signal.getsignal(signal.SIGTERM) is before
    between = ZooForCausalLM.from_pretrained(new).state_dict()
    assert any(not torch.equal(between[name], unhealed[name]) for name in between)
    with pytest.raises(SurgeryError, match=r"steps=7: .* holds a run with 6"):
        heal(new, None, short, steps=7)
    code, out, _ = zoo("heal", new, "--json")
    assert code == 0
    said = json.loads(out)
    assert said["healed"]["perplexity"] < said["after"]["perplexity"] > said["before"]["perplexity"]
    assert sorted(path.name for path in new.iterdir()) == files
    record = json.loads((new / "config.json").read_text())["surgery"]
    assert [stage["steps"] for stage in record["healing"][0]["stages"]] == [4, 6]
    assert "healed by 4 steps on outputs" in (new / "README.md").read_text()
    assert perplexity(
        ZooForCausalLM.from_pretrained(new), read_text(short, STORIES, stories()[0].config).to_measure(3072)
    ) == pytest.approx(said["healed"]["perplexity"], rel=1e-5)


@pytest.mark.long
def test_a_folder_in_bfloat16_is_healed_in_float32_and_again(tmp_path, short):
    """The table keeps what it was before the first healing; sizes are those of the folder's dtype."""
    operate(STORIES, tmp_path / "new", {"num_key_value_heads": 2}, method="first", dtype="bfloat16")
    first = heal(tmp_path / "new", None, short, steps=2, layerwise=2)
    again = heal(tmp_path / "new", None, short, steps=2)
    assert again.after == first.after and len(again.healing) == 2
    assert again.healed.cache_bytes_per_token == again.after.cache_bytes_per_token == 320
    assert [stage["loss"] for stage in again.healing[1]["stages"]] == ["logits"]
    assert {tensor.dtype for tensor in ZooForCausalLM.from_pretrained(tmp_path / "new").parameters()} == {
        torch.bfloat16
    }


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


def test_a_file_of_weights_is_replaced_at_once(tmp_path, monkeypatch):
    """A disk that fills up while the second of two files is written changes neither."""
    operate(STORIES, tmp_path / "new", {"num_key_value_heads": 2}, method="first", max_shard_size="500KB")
    folder, before = HealingFolder(tmp_path / "new"), files_of(tmp_path / "new")
    assert len(before) > 1
    from zoo.surgery import healing_folder

    calls, save = [], healing_folder.save_file

    def full(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("no space left on device")
        save(*args)

    monkeypatch.setattr(healing_folder, "save_file", full)
    weights = {name: tensor + 1 for name, tensor in ZooForCausalLM.from_pretrained(folder.path).state_dict().items()}
    with pytest.raises(OSError, match="no space"):
        folder.write_weights(weights)
    assert files_of(folder.path) == before


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train": "head"}, "none of"),
        ({"steps": 0, "layerwise": 0}, "nothing to heal with"),
        ({"steps": -1}, "numbers from 0"),
        ({"learning_rate": 1e30}, "lower learning_rate"),
    ],
)
def test_what_cannot_be_healed_is_refused(options, says, short):
    with pytest.raises(SurgeryError, match=says):
        operate(STORIES, None, {"num_key_value_heads": 2}, method="first", heal=short, healing=Healing(**options))


def test_only_what_surgery_made_is_healed(tmp_path):
    with pytest.raises(SurgeryError, match="nothing to heal"):
        heal(STORIES, None, TEXT)
    operate(STORIES, tmp_path / "new", {"num_key_value_heads": 2}, method="first")
    with pytest.raises(SurgeryError, match="needs a text"):
        heal(tmp_path / "new")
    assert not (tmp_path / "new/.healing").exists()


@pytest.mark.long
def test_nothing_is_written_where_it_becomes_too_much_worse(tmp_path, short):
    with pytest.raises(SurgeryError, match="more than 2 times: nothing was written"):
        operate(STORIES, tmp_path / "new", {"num_key_value_heads": 2}, method="first", evaluate=short, at_most=2.0)
    assert not (tmp_path / "new").exists()


# Fields, what heals, perplexity at most after 150 steps: of 2.70, 5 % above what the reference page measured.
HEALED = {
    "heads": ({"num_key_value_heads": 2}, {"layerwise": 0}, 3.27),
    "one head": (FEWER, {"layerwise": 80}, 3.65),
    "one head, alone": (FEWER, {"layerwise": 0}, 3.78),
    "one head, lora": (FEWER, {"layerwise": 0, "train": "lora", "learning_rate": 3e-3}, 4.18),
    "latent": ({"attention_type": "latent", "qk_rope_head_dim": 8, "kv_lora_rank": 16}, {"layerwise": 0}, 3.19),
}


@pytest.mark.long
@pytest.mark.parametrize("case", HEALED)
def test_healing_reaches_what_was_measured(case):
    fields, options, wanted = HEALED[case]
    report = operate(STORIES, None, fields, calibrate=TEXT, heal=TEXT, healing=Healing(150, **options))
    assert report.healed.perplexity <= 1.05 * wanted


def test_stages_without_a_changed_part_learn_on_logits_alone():
    assert plan_stages([], 9, "all", 1e-3) == [HealingStage("logits", 9, 1e-3, "all")]
    with pytest.raises(SurgeryError, match="nothing of this model"):
        plan_stages([], 9, "changed")


def test_taps_leave_a_model_as_it_was(pair):
    teacher, _, rows = pair
    with tapped(teacher, ["0.mixer", "1.mlp"]) as found:
        teacher.model(rows[:1], use_cache=False)
    assert found.keys() == {"0.mixer", "1.mlp"} and "mixer" not in vars(teacher.model.layers[0])
