"""zoo under torchtitan's own Trainer on CPU ranks: trained, checkpointed, resumed on fewer, written as a folder."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from places import ROOT, SUPPORT

pytestmark = pytest.mark.torchtitan

LINEAR, FULL = "linear_attention", "full_attention"
MIX = {
    **{"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"intermediate_size": 96, "max_position_embeddings": 128, "initializer": {"type": "auto"}},
    **{"attention_type": "latent", "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 8},
    **{"qk_rope_head_dim": 8, "v_head_dim": 16, "layer_types": [LINEAR, LINEAR, FULL]},
    **{"linear_attention_type": "kimi_delta_attention", "linear_num_key_heads": 4, "linear_num_value_heads": 4},
    **{"linear_key_head_dim": 16, "linear_value_head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 48, "scoring_func": "sigmoid", "use_score_correction_bias": True},
}


def train(folder, steps, ranks, *more):
    """{step: loss} as torchtitan logs it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", str(SUPPORT / "titan_worker.py"), str(folder), str(steps)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{SUPPORT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(ranks), json.dumps(MIX), *more], env=environment, capture_output=True, text=True, timeout=300
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown[-4000:]
    return {int(step): float(loss) for step, loss in re.findall(r"step: +(\d+) +loss: +(\S+)", shown)}


def test_trained_on_two_ranks_resumed_on_one_and_written_as_a_folder(tmp_path):
    from titan_worker import Bytes

    from modeling_zoo import ZooForCausalLM
    from zoo.training.torchtitan import write_folder

    losses = train(tmp_path, 10, 2)
    assert losses[1] == pytest.approx(5.545, abs=0.15) and losses[10] < losses[1] - 0.8
    write_folder(tmp_path / "checkpoint" / "step-10", MIX, tmp_path / "model")
    assert "# A zoo model" in (tmp_path / "model" / "README.md").read_text()
    resumed = train(tmp_path, 12, 1)
    assert sorted(resumed) == [11, 12]
    # The first step after the checkpoint sees the weights of the folder.
    rows = iter(Bytes(0, 1, 64, 8))
    batch = [next(rows) for _ in range(8)]
    tokens, targets = torch.stack([row[0]["input"] for row in batch]), torch.stack([row[1] for row in batch])
    model = ZooForCausalLM.from_pretrained(tmp_path / "model").train()
    loss = torch.nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), targets.flatten())
    assert resumed[11] == pytest.approx(loss.item(), abs=2e-4)
    biases = [
        module.e_score_correction_bias for module in model.modules() if hasattr(module, "e_score_correction_bias")
    ]
    # Ten steps of 1e-3 each, up or down.
    assert biases and all(0 < bias.abs().max() <= 1.01e-2 for bias in biases)


def test_layers_compiled_one_by_one(tmp_path):
    plain, compiled = train(tmp_path / "plain", 3, 1), train(tmp_path / "compiled", 3, 1, "compile")
    assert compiled == pytest.approx(plain, abs=1e-3)


def test_what_it_would_leave_out_is_refused(tmp_path):
    from zoo.training.torchtitan import model_spec, write_folder

    with pytest.raises(ValueError, match="would leave out router_aux_loss_coef=0.01: set it to 0"):
        model_spec({**MIX, "router_aux_loss_coef": 0.01})
    with pytest.raises(ValueError, match="is no checkpoint of torchtitan: it has no .metadata"):
        write_folder(tmp_path, MIX, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("ways", ["tp", "ep", "pp", "cp"])
def test_layouts_it_does_not_have_are_refused(ways):
    from types import SimpleNamespace

    from zoo.training.torchtitan import parallelize

    settings = dict.fromkeys(("training", "parallelism", "compile_config", "ac_config", "dump_folder"))
    with pytest.raises(ValueError, match=f"{ways}=2: a zoo model takes no .* parallelism in torchtitan"):
        parallelize(None, parallel_dims=SimpleNamespace(**{ways: 2}), **settings)
