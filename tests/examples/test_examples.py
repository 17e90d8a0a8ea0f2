"""What the front page and `make demo` promise, run as they stand there."""

import json
import os
import re
import runpy
import subprocess
import sys

import pytest
import torch
from places import ROOT, STORIES
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

STORY = "Once upon a time, there was a little girl named Lily."


def run(command, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_of_the_front_page_tell_the_story(tmp_path):
    mix, five = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shown = f"{mix}\nprint(sorted(set(config.layer_types)), config.num_experts)"
    assert run([sys.executable, "-c", shown], tmp_path) == "['full_attention', 'linear_attention'] 64\n"
    # Twice: what is there already is replaced.
    for _ in range(2):
        assert run([sys.executable, "-c", five], tmp_path).startswith(STORY)


@pytest.mark.long
def test_the_demo_does_the_main_job():
    shown = run([sys.executable, "examples/demo.py"], ROOT)
    for promise in (STORY, "No module named 'modeling_zoo'", "all 85 equal", "tensors are bit-equal to the source"):
        assert promise in shown


@pytest.mark.long
@pytest.mark.parametrize(
    "command, says",
    [
        ("batching.py no/such/folder hello", "'no/such/folder' is neither the folder of a model"),
        ("evaluate.py .", "'.' is neither the folder of a model"),
        ("export_graph.py", "the following arguments are required: folder, target"),
        ("spread_out.py ../nowhere", "'../nowhere' is neither the folder of a model"),
        ("publish.py . name", "'.' is neither the folder of a model"),
        ("load_remote.py", "usage: load_remote.py FOLDER"),
        ("train_tiny.py --set num_exprts=8", "num_exprts=8 is not a field of ZooConfig. Did you mean 'num_experts'?"),
        ("train_tiny.py --corpus none.txt", "No such file or directory: 'none.txt'"),
    ],
)
def test_a_wrong_input_ends_in_a_sentence(command, says, tmp_path):
    script, *arguments = command.split()
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode and says in done.stderr and "Traceback" not in done.stderr


# -- training ------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [[], ["num_experts=4", "num_experts_per_tok=2", "router_aux_loss_coef=0.01", "output_z_loss_coef=1e-4"]],
    ids=str,
)
def test_a_tiny_model_is_trained_with_any_flags(flags, tmp_path):
    pytest.importorskip("accelerate")
    command = [sys.executable, str(ROOT / "examples" / "train_tiny.py"), "--steps", "12", "--length", "64"]
    shown = run(command + [part for flag in flags for part in ("--set", flag)], tmp_path)
    first, last = (float(number) for number in re.search(r"loss (\S+) -> (\S+)", shown).groups())
    # From the entropy of 256 equal bytes to that of English letters.
    assert first == pytest.approx(5.55, abs=0.15) and last < 3.6
    output = tmp_path / "output" / "train_tiny"
    assert (output / "loss.png").stat().st_size > 5000 and (output / "zoo" / "modeling_zoo.py").is_file()


@pytest.mark.long
def test_a_hybrid_beside_a_llama(tmp_path):
    pytest.importorskip("accelerate")
    command = [sys.executable, str(ROOT / "examples" / "train_tiny.py"), "--compare", "--steps", "2", "--length", "32"]
    run(command, tmp_path)
    curves = json.loads((tmp_path / "output" / "train_tiny" / "losses.json").read_text())
    hybrid, llama = (curves[name]["parameters"] for name in ("3 gated delta net : 1 full", "Llama"))
    assert hybrid == pytest.approx(llama, rel=0.002)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    from conversion import convert

    folder = tmp_path_factory.mktemp("examples")
    convert(ROOT / "examples" / "stories260K", folder / "base")
    return folder


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "options", "improved"),
    [
        ("finetune_lora.py", ["--steps", "6"], r"held-out loss (\S+) -> (\S+)"),
        ("finetune_sft.py", ["--steps", "4", "--preferences", "2"], r"eval_loss (\S+) -> (\S+)"),
    ],
)
def test_fine_tuning_by_the_code_in_the_folder(script, options, improved, converted):
    """The folder is there already, so the script imports nothing of zoo."""
    for library in ("peft", "accelerate", "trl", "datasets"):
        pytest.importorskip(library)
    command = [sys.executable, str(ROOT / "examples" / script), *options, "--output", str(converted)]
    shown = run(command, converted)
    assert "transformers_modules." in shown
    before, after = (float(number) for number in re.search(improved, shown).groups())
    assert after < before - 0.2
    same_both_ways(converted)


def same_both_ways(folder, auto=AutoModelForCausalLM, parameters=260032):
    """The merged folder, by the code in it, and transformers' own class on the checkpoint that was made of it."""
    assert (folder / "merged" / "modeling_zoo.py").is_file()
    card = (folder / "merged" / "README.md").read_text()
    assert "# A zoo model" in card and "It has the architecture of a `llama` checkpoint." in card
    ours = auto.from_pretrained(folder / "merged", trust_remote_code=True).eval()
    theirs = auto.from_pretrained(folder / "back").eval()
    assert type(theirs).__module__ == "transformers.models.llama.modeling_llama"
    assert ours.num_parameters() == theirs.num_parameters() == parameters
    tokens = torch.randint(3, 500, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=2e-5, atol=2e-5)


def run_here(script, monkeypatch, capsys, *options):
    """A script of examples/ in this process, which has imported torch already; -> what it prints."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, options)])
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    return capsys.readouterr().out


# Script, options, what got better and how much, class of the model, parameters.
FINE_TUNING = {
    "packed": (["--steps", "3"], "held-out loss", 0.3, AutoModelForCausalLM, 260032),
    "qlora": (["--steps", "8", "--rank", "4"], "held-out loss", 0.3, AutoModelForCausalLM, 260160),
    "reward": (["--steps", "20"], "held-out loss", 0.05, AutoModelForSequenceClassification, 260096),
    "grpo": (["--steps", "6"], "words from five in a sentence", 0.0, AutoModelForCausalLM, 260032),
    "distill": (["--steps", "10"], "held-out divergence", 0.1, AutoModelForCausalLM, 169152),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] * (n != "packed")) for n in FINE_TUNING])
def test_fine_tuning_and_the_way_back_to_the_family(name, tmp_path, monkeypatch, capsys):
    for library in ("peft", "accelerate", "trl", "datasets", "bitsandbytes"):
        pytest.importorskip(library)
    options, what, least, auto, parameters = FINE_TUNING[name]
    shown = run_here(f"finetune_{name}.py", monkeypatch, capsys, *options, "--output", tmp_path)
    before, after = (float(number) for number in re.search(rf"{what} (\S+) -> (\S+)", shown).groups())
    assert after < before - least
    same_both_ways(tmp_path, auto, parameters)
    if name == "packed":
        padded, packed = re.findall(r"loss (\S+) over (\S+)", shown)[:2]
        assert padded[0] == packed[0] and int(packed[1].replace(",", "")) < 0.8 * int(padded[1].replace(",", ""))
    if name in ("qlora", "grpo"):
        card = (tmp_path / "adapter" / "README.md").read_text()
        assert "# A LoRA for a zoo model converted from a `llama` checkpoint" in card
        assert str(tmp_path) not in card and "More Information Needed" not in card


@pytest.mark.parametrize(
    ("script", "options", "sentence"),
    [
        ("finetune_packed.py", ["--source", "nowhere"], r"error: .*nowhere"),
        ("finetune_packed.py", ["--corpus", "nothing.txt"], r"error: .*No such file.*nothing.txt"),
        ("finetune_packed.py", ["--corpus", str(STORIES / "config.json")], r"error: The corpus has 0 speeches"),
        ("finetune_packed.py", ["--steps", "0"], "'0' is not a whole number above 0"),
        ("finetune_distill.py", ["--layers", "9"], r"error: --layers 9: the teacher has 5 layers; give fewer."),
    ],
)
def test_wrong_input_to_a_fine_tuning_example_is_a_sentence(script, options, sentence, tmp_path, monkeypatch, capsys):
    pytest.importorskip("trl")
    with pytest.raises(SystemExit) as stopped:
        run_here(script, monkeypatch, capsys, *options, "--output", tmp_path)
    # argparse has printed its own.
    said = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err
    assert re.search(sentence, said) and "Traceback" not in said


@pytest.mark.long
@pytest.mark.parametrize("kind", ["dora", "ia3", "prompt", "prefix"])
def test_other_kinds_of_adapters(kind, converted):
    pytest.importorskip("peft")
    pytest.importorskip("accelerate")
    command = [sys.executable, str(ROOT / "examples" / "finetune_lora.py"), "--kind", kind, "--steps", "3"]
    shown = run(command + ["--output", str(converted)], converted)
    before, after = (float(number) for number in re.search(r"held-out loss (\S+) -> (\S+)", shown).groups())
    assert after < before and "ROMEO:" in shown


@pytest.mark.long
def test_a_loop_of_one_s_own(tmp_path):
    """Two passes of a step are one pass: the first loss counts all their targets."""
    pytest.importorskip("accelerate")
    command = [sys.executable, str(ROOT / "examples" / "train_accelerate.py"), "--steps", "4"]
    losses = [float(number) for number in re.findall(r"loss (\S+)", run(command, tmp_path))]
    assert losses[0] == pytest.approx(5.6, abs=0.1) and losses[-1] < 5.0


def train_distributed(folder, *options, processes=1):
    command = [sys.executable, str(ROOT / "examples" / "train_distributed.py")]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--rdzv-backend", "c10d"]
        command[1:1] = [*torchrun, "--rdzv-endpoint", "127.0.0.1:0"]
    run([*command, "--batch", "4", "--length", "24", "--output", str(folder), *options], folder)


@pytest.mark.long
def test_the_table_of_a_large_mix_is_what_its_flags_cost(tmp_path):
    shown = run([sys.executable, str(ROOT / "examples" / "mix_671b.py")], tmp_path)
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(lines) == 10 and "\n".join(lines) in (ROOT / "docs" / "scale.md").read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    "layouts",
    [
        [("--fsdp", "2", "--ep", "2"), ("--tp", "2")],
        [("--tp", "2"), ()],
        [("--tp", "2", "--fsdp", "2", "--ep", "4"), ("--fsdp", "2")],
    ],
    ids=lambda layouts: " then ".join(" ".join(layout) or "one process" for layout in layouts),
)
def test_training_goes_on_in_another_layout(layouts, tmp_path):
    """Three steps in one layout and three in another end where six of one process do."""
    for name in ("one", "several"):
        (tmp_path / name).mkdir()
    train_distributed(tmp_path / "one", "--steps", "6")
    for count, layout in enumerate(layouts):
        processes = 4 if "4" in layout else 2 if layout else 1
        more = ["--resume"] * count + ["--steps", str(3 * (count + 1))]
        train_distributed(tmp_path / "several", *layout, *more, processes=processes)
    one, several, start = (
        load_file(tmp_path / name / "model.safetensors") for name in ("one/model", "several/model", "one/start")
    )
    moved = max((one[name] - start[name]).abs().max() for name in one)
    assert moved > 5e-3 and one.keys() == several.keys()
    assert max((one[name] - several[name]).abs().max() for name in one) < 1e-4


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tp", "2"], "error: --tp 2 times --fsdp 1 is not the number of processes, 1."),
        (["--resume"], "error: --resume: .* has no checkpoint; train without --resume first."),
    ],
)
def test_a_layout_that_does_not_fit_is_a_sentence(options, sentence, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "train_distributed.py"), *options]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and re.search(sentence, done.stderr) and "Traceback" not in done.stderr


# -- spreading out -----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("layout", [["--tp", "2"], ["--fsdp", "2"], ["--pp", "2"], ["--disk", "3"]], ids=" ".join)
def test_a_model_in_several_places_tells_the_same_story(layout, converted):
    """The folder lies there already, so no process imports anything of zoo."""
    pytest.importorskip("accelerate")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", "127.0.0.1:0"]
    command = [sys.executable, *([] if "--disk" in layout else torchrun), str(ROOT / "examples" / "spread_out.py")]
    command += [str(converted / "base"), *layout, "--offload", str(converted / "offload")]
    shown = run(command + ([] if "--disk" in layout else ["--save", str(converted / "whole")]), converted)
    assert STORY.startswith(re.search(r"Once upon a time.*", shown)[0][:40])
    held = [int(number.replace(",", "")) for number in re.findall(r"holds (\S+) bytes", shown)]
    assert len(held) == (1 if "--disk" in layout else 2) and max(held) < 0.7 * 4 * 260032
    if "--disk" not in layout:
        whole, base = (load_file(converted / name / "model.safetensors") for name in ("whole", "base"))
        # Where it is split, a tied head is written beside its table.
        assert whole.keys() - base.keys() <= {"lm_head.weight"}
        assert all(torch.equal(whole[name], base[name]) for name in base)
