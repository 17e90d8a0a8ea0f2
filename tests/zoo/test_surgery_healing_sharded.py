"""Healing over several processes: two ranks with a part of every weight each go the way of one process, stopped between
or not."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from surgery_models import STORIES, TEXT

from conversion import convert
from modeling_zoo import ZooForCausalLM
from zoo.surgery import heal, operate
from zoo.surgery.distillation import HealingStage
from zoo.surgery.healing_sharded import refuse_unsharded
from zoo.surgery.operation import SurgeryError

STEPS = ["--steps", "6", "--layerwise", "0"]


def on_two_ranks(*arguments, until=None):
    """`zoo heal` under torchrun, stopped when the file `until` is there; → (exit code, what it printed, what it said of
    errors)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "-m", "zoo", "heal", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while until is not None and not until.exists() and run.poll() is None:
            time.sleep(0.01)
        if until is not None:
            run.terminate()
        out, error = run.communicate(timeout=900)
    return run.returncode, out, error


@pytest.mark.long
@pytest.mark.parametrize("train", ["all", "changed"])
def test_two_processes_heal_as_one_does(tmp_path, train):
    text = tmp_path / "short.txt"
    text.write_text(TEXT.read_text()[:30_000])
    teacher, one, two = (tmp_path / name for name in ("teacher", "one", "two"))
    convert(STORIES, teacher)
    operate(teacher, one, {"num_key_value_heads": 2}, method="first")
    shutil.copytree(one, two)
    alone = heal(one, teacher, text, steps=6, layerwise=0, train=train)
    command = [two, "--teacher", teacher, "--text", text, "--train", train, "--json", *STEPS]
    if train == "all":
        code, _, error = on_two_ranks(*command, "--save-every", "1", until=two / ".healing" / "state-1.pt")
        assert code != 0 and (two / ".healing" / "state.pt").is_file(), error[-3000:]
        with pytest.raises(SurgeryError, match="processes=1: .* holds a run with 2"):
            heal(two, teacher, text, steps=6, layerwise=0)
    code, out, error = on_two_ranks(*command)
    assert code == 0, error[-3000:]
    said = json.loads(out.strip().splitlines()[-1])
    for name in ("before", "after", "healed"):
        assert said[name]["perplexity"] == pytest.approx(getattr(alone, name).perplexity, rel=1e-4)
    assert said["healed"]["perplexity"] < said["after"]["perplexity"]
    expected, found = (ZooForCausalLM.from_pretrained(folder).state_dict() for folder in (one, two))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
    assert not (two / ".healing").exists()
    records = [json.loads((folder / "config.json").read_text())["surgery"]["healing"] for folder in (one, two)]
    assert records[0][0]["stages"] == records[1][0]["stages"]


def test_steps_that_processes_do_not_share_are_refused():
    with pytest.raises(SurgeryError, match="3 steps on outputs are for one process"):
        refuse_unsharded(False, [HealingStage("outputs", 3, 1e-3, "changed"), HealingStage("logits", 3, 1e-3)])
    with pytest.raises(SurgeryError, match="lora"):
        refuse_unsharded(False, [HealingStage("logits", 3, 1e-3, "lora")])
    with pytest.raises(SurgeryError, match="--streamed"):
        refuse_unsharded(True, [HealingStage("outputs", 3, 1e-3, "changed")])
