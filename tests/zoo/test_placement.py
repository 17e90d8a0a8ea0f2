"""Folders over two processes: each holds what `zoo inspect --tp --ep` computes; FSDP2, pipeline, layers on disk."""

import json
import os
import subprocess
import sys

import pytest
import torch
from combinations import EXPERTS, FULL, LATENT, ROWS, SIZES, SLIDING
from places import SUPPORT
from random_models import randomize
from samples import only
from transformers import AutoModelForCausalLM

from modeling_zoo import ZooConfig, ZooForCausalLM
from zoo.cli.errors import UserError
from zoo.cli.main import main
from zoo.cli.placement import place

EVEN = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101, "dtype": "float32"}
SPARSE = {**EXPERTS, "num_experts": 4, "n_shared_experts": 1}
RANKED = {**LATENT, "num_key_value_heads": 4, "q_lora_rank": 18}
LAYOUTS = {
    "tensor": ({"tp_size": 2}, (2, 1), {"attention_bias": True, "tie_word_embeddings": True}),
    "experts": ({"tp_size": 2, "ep_size": 2}, (2, 2), SPARSE),
    "experts split inside": ({"tp_size": 2}, (2, 1), SPARSE),
    "latent experts": ({"tp_size": 2, "ep_size": 2}, (2, 2), {**RANKED, **SPARSE}),
    "experts over FSDP": ({"fsdp_size": 2, "ep_size": 2}, (1, 2), SPARSE),
    "FSDP2": ({"fsdp_size": 2}, None, {"qk_norm": "rms_norm"}),
    "pipeline": ({"pp_size": 2}, None, {"num_hidden_layers": 4, "embedding_multiplier": 7.0, "qk_norm": "rms_norm"}),
    "pipeline of windows": (
        *({"pp_size": 2}, None),
        {"layer_types": [SLIDING, FULL] * 2, "sliding_window": 4, "num_hidden_layers": 4, "tie_word_embeddings": True},
    ),
}


def make_folder(tmp_path, flags):
    model = ZooForCausalLM(ZooConfig(**{**EVEN, **flags}))
    randomize(model)
    model.generation_config.eos_token_id = None
    model.eval().save_pretrained(tmp_path)
    tokens = torch.randint(1, 101, (2, 9))
    torch.save(tokens, tmp_path / "tokens.pt")
    return model, tokens


def two_ranks(folder, layout):
    """What both ranks found; the folder is remote code to them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", str(SUPPORT / "placement_worker.py"), str(folder)]
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules")}
    done = subprocess.run(
        [*command, json.dumps(layout)], env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"found{rank}.pt") for rank in (0, 1)]


@pytest.mark.long
@pytest.mark.parametrize("name", LAYOUTS)
def test_two_ranks_hold_what_is_computed_and_give_what_one_does(name, tmp_path):
    layout, sizes, flags = LAYOUTS[name]
    model, tokens = make_folder(tmp_path, flags)
    ranks = two_ranks(tmp_path, layout)
    with torch.no_grad():
        expected = model(tokens).logits
    for rank in ranks:
        torch.testing.assert_close(rank["logits"], expected, rtol=2e-5, atol=2e-5)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    held = [sum(rank["held"].values()) for rank in ranks]
    assert max(held) < 0.9 * whole <= sum(held)
    if sizes is not None:
        assert place(model.config, *sizes)["bytes_per_rank"] == max(held)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    greedy = model.generate(tokens, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert all(torch.equal(rank["sequence"], greedy) for rank in ranks)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(again[key], tensor), key


def test_layers_on_disk_give_the_same(tmp_path):
    model, tokens = make_folder(tmp_path, SPARSE)
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    options = {"device_map": places, "offload_folder": str(tmp_path / "offload")}
    placed = ZooForCausalLM.from_pretrained(tmp_path, **options).eval()
    assert placed.hf_device_map["model.layers.2"] == "disk"
    assert all(weight.device.type == "meta" for weight in placed.model.layers[2].parameters())
    with torch.no_grad():
        torch.testing.assert_close(placed(tokens).logits, model(tokens).logits, rtol=2e-5, atol=2e-5)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(placed.generate(tokens, **options), model.generate(tokens, **options))


@pytest.mark.parametrize("group", only(["mlp"], ["mixer", "attention", "mlp", "embedding"]))
def test_every_flag_is_placed_on_one_rank_whole_and_on_two_in_part(group):
    for flags in ROWS[group]:
        config = ZooConfig(**{**SIZES, **flags})
        alone = place(config, 1, 1)
        assert alone["bytes_per_rank"] == alone["bytes"] and alone["gathered_bytes"] == 0
        try:
            two = place(config, 2, 1)
        except UserError as error:
            assert "--tp 2 does not divide" in str(error)
        else:
            assert alone["bytes"] / 2 <= two["bytes_per_rank"] < alone["bytes"]


def test_a_hybrid_of_27_billion_parameters_over_eight_ranks():
    """Qwen3.5's shape: recurrences and attention are divided, four heads of keys are one for each of eight ranks."""
    words = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 16
    config = ZooConfig(
        vocab_size=248320, hidden_size=5120, intermediate_size=17408, num_hidden_layers=64, num_attention_heads=24,
        num_key_value_heads=4, head_dim=256, layer_types=words, linear_attention_type="gated_delta_net",
        linear_num_key_heads=16, linear_num_value_heads=48, linear_key_head_dim=128, linear_value_head_dim=128,
        attn_output_gate="query", qk_norm="rms_norm", max_position_embeddings=262144, dtype="bfloat16",
    )  # fmt: skip
    alone, eight = place(config, 1, 1), place(config, 8, 1)
    assert 53e9 < alone["bytes_per_rank"] < 54e9 and alone["bytes_per_rank"] / 8 < eight["bytes_per_rank"] < 7e9
    assert eight["cache_bytes_per_token_per_rank"] == alone["cache_bytes_per_token_per_rank"] // 4
    states = 48 * (48 * 128 * 128 * 4 + 4 * (2 * 16 + 48) * 128 * 2)
    grown = 262144 * alone["cache_bytes_per_token_per_rank"]
    assert alone["cache_bytes_per_rank"] == states + grown
    assert eight["cache_bytes_per_rank"] == states // 8 + grown // 4


def test_the_command_says_what_a_rank_holds(monkeypatch, capsys, tmp_path):
    config = ZooConfig(**{**EVEN, **SPARSE})
    config.to_json_file(tmp_path / "config.json")

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["zoo", "inspect", str(tmp_path / "config.json"), *options])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capsys.readouterr()

    code, shown = run("--tp", "2", "--ep", "2", "--json")
    placed = json.loads(shown.out)["placement"]
    assert code == 0 and placed == place(config, 2, 2) and placed["ranks"] == 2
    assert "tp 2 × ep 4, fsdp 2: 4 ranks" in run("--tp", "2", "--ep", "4")[1].out
    for options, said in (
        (("--tp", "3"), "--tp 3 does not divide num_attention_heads=4"),
        (("--ep", "3"), "--ep 3 does not divide num_experts=4"),
        (("--tp", "4", "--ep", "2"), "--ep 2 is not a multiple of --tp 4"),
    ):
        code, shown = run(*options)
        assert code == 1 and said in shown.err and shown.err.count("\n") == 1
