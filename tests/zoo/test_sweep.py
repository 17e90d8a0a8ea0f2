"""`zoo sweep`: variants of one size or one cost, each with every seed; what fails stops nothing; what is done stays."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from description_zoo.measure import measure
from zoo.cli.main import app
from zoo.training import RecipeError, sweep, train
from zoo.training.variants import plan

STORIES = [f"Once upon a time there was a {name} who had {count} red balls.\n" for name in ("cat", "dog", "bird")
           for count in range(2, 40)]  # fmt: skip
LATENT = {"attention_type": "latent", "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}


@pytest.fixture
def said(tmp_path):
    (tmp_path / "stories.txt").write_text("<|end|>".join(STORIES))
    base = {
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48},
        "tokenizer": {"vocab_size": 300},
        "data": {"files": [str(tmp_path / "*.txt")], "separator": "<|end|>", "length": 32, "held_out": 0.1},
        "training": {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 2, "eval_steps": 2},
    }
    variants = {"llama": {}, "latent": {"model": LATENT}}
    return {"base": base, "output_dir": str(tmp_path / "sweep"), "variants": variants}


def dry(said):
    return {row["variant"]: row for row in sweep(said, dry_run=True, shows=False)["variants"]}


@pytest.mark.parametrize("match", ["parameters", "active_parameters"])
def test_variants_are_of_one_size(said, match):
    experts = {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    experts |= {"mlp_layer_types": ["dense", "sparse"]}
    said |= {"match": match, "match_step": 2, "variants": {**said["variants"], "experts": experts}}
    rows = dry(said)
    assert all(abs(row[match] / rows["llama"][match] - 1) <= 0.02 for row in rows.values())
    planned = {one.name: one for one in plan(said).variants}
    widths = [planned[name].recipe.model["intermediate_size"] for name in rows]
    assert widths[0] == 48 and len(set(widths)) == 3 and all(width % 2 == 0 for width in widths)


def test_variants_cost_the_same(said):
    said |= {"match": "flops"}
    said["base"]["training"]["max_steps"] = 300
    rows = dry(said)
    assert rows["llama"]["steps"] == 300 != rows["latent"]["steps"]
    assert rows["latent"]["flops"] == pytest.approx(rows["llama"]["flops"], rel=0.5 / 300)
    assert rows["latent"]["tokens"] == rows["latent"]["steps"] * 4 * 32


def test_a_dry_run_leaves_nothing_and_another_tokenizer_is_refused(said, tmp_path):
    dry(said)
    assert not (tmp_path / "sweep").exists()
    plan(said)
    assert (tmp_path / "sweep" / "tokenizer" / "tokenizer.json").exists()
    said["base"]["tokenizer"] = {"vocab_size": 310}
    with pytest.raises(RecipeError, match="holds a sweep with tokenizer.vocab_size=300, not 310"):
        sweep(said)


def test_a_width_that_cannot_match_is_named(said):
    said |= {"match": "parameters", "match_step": 2048}
    found = sweep(said, dry_run=True)
    assert list(found["failed"]) == ["latent"]
    assert "no model.intermediate_size brings it within 2.0% of" in found["failed"]["latent"]


def test_the_sweep_goes_on_and_ends_with_what_every_run_alone_gives(said, tmp_path, monkeypatch):
    said |= {"seeds": [3, 5], "variants": {**said["variants"], "odd": {"hidden_size": 33}, "gat": {"attn_gate": 1}}}
    import zoo.training.variants as module

    begun = []

    def counted(recipe, **options):
        begun.append(recipe.training["output_dir"])
        if len(begun) == 2:
            raise MemoryError("no room")
        return train(recipe, **options)

    monkeypatch.setattr(module, "train", counted)
    first = sweep(said, shows=False)
    # One run had no room, one variant cannot be built, one names nothing: each has its sentence.
    assert "no room" in first["failed"].pop("llama, seed 5")
    assert "hidden_size=33" in first["failed"].pop("odd") and "attn_gate" in first["failed"].pop("gat")
    assert not first["failed"] and [row["runs"] for row in first["variants"]] == [1, 2, 0, 0]
    assert len(begun) == 4
    second = sweep(said, shows=False)
    # What was done is not done again.
    assert len(begun) == 5 and begun[-1].endswith("seed-5")
    assert [row["runs"] for row in second["variants"]] == [2, 2, 0, 0]
    output = tmp_path / "sweep"
    assert json.loads((output / "sweep.json").read_text()) == second
    assert (output / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "sweep.md").read_text().count("\n| ") == 5
    # The same as a run of its own.
    base = {**said["base"], "tokenizer": {"path": str(output / "tokenizer")}}
    base["training"] = base["training"] | {"seed": 5, "output_dir": str(tmp_path / "alone")}
    alone = train(base, shows=False)
    assert alone["loss"] == json.loads((output / "llama" / "seed-5" / "log.json").read_text())["result"]["loss"]
    logs = [json.loads((output / "llama" / f"seed-{seed}" / "log.json").read_text()) for seed in (3, 5)]
    (one, other), row = [log["result"]["loss"] for log in logs], second["variants"][0]
    assert row["loss"] == pytest.approx((one + other) / 2)
    assert row["loss_deviation"] == pytest.approx(abs(one - other) / 2**0.5)
    model = AutoModelForCausalLM.from_pretrained(output / "latent" / "seed-3" / "model")
    assert row["parameters"] != second["variants"][1]["parameters"] == model.num_parameters()
    # The table is of bfloat16, the folder of float32.
    assert second["variants"][1]["cache_bytes_per_token"] * 2 == measure(model.config)["cache_bytes_per_token"]
    assert len(AutoTokenizer.from_pretrained(output / "latent" / "seed-3" / "model")) == 300
    # A run of another recipe is not overwritten, nor counted, nor drawn.
    (output / "sweep.png").unlink()
    usual = said["base"]["training"]
    said["base"]["training"] = usual | {"learning_rate": 1e-2}
    third = sweep(said, shows=False)
    assert "training.learning_rate is 0.003 there and 0.01 now" in third["failed"]["llama, seed 3"]
    assert [row["runs"] for row in third["variants"]] == [0, 0, 0, 0] and len(begun) == 5
    assert not (output / "sweep.png").exists()
    # Asked for as it was, it is as it was: what another recipe failed at there is no failure of these runs.
    said["base"]["training"] = usual
    assert sweep(said, shows=False) == second and len(begun) == 5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"variants": {}}, "variants: name at least one"),
        ({"variants": {"../up": {}}}, "'../up' cannot be the name of a folder"),
        ({"match": "size"}, "match='size' is not one of"),
        ({"seeds": [1, 1]}, "give at least one, and none twice"),
        ({"seeds": "1"}, "seeds='1' must be"),
        ({"reference": "lama"}, "reference='lama' is not one of the variants"),
        ({"varients": {}}, "sweep.varients is not a field of sweep. Did you mean"),
        ({"base": None}, "base: name the file of a recipe"),
        ({"match": "flops", "reference": "latent", "variants": {"latent": {"kv_lora_rank": 3}}}, "cannot be built"),
    ],
)
def test_what_cannot_be_a_sweep_is_refused(said, changes, sentence):
    with pytest.raises(RecipeError, match=sentence.replace(".", r"\.")):
        sweep(said | changes, dry_run=True)


def test_the_command_line(said, tmp_path):
    import yaml

    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(said | {"variants": {"llama": {}, "odd": {"hidden_size": 33}, "run": {"seed": 3}}}))
    done = CliRunner().invoke(app, ["sweep", str(path), "--dry-run", "--json", "--set", "hidden_size=64"])
    found = json.loads(done.stdout)
    assert done.exit_code == 1 and found["failed"].keys() == {"odd", "run"}
    assert "training.seed is the sweep's own" in found["failed"]["run"]
    done = CliRunner().invoke(app, ["sweep", str(path), "--dry-run"])
    assert done.exit_code == 1 and "FLOPs/token" in done.stdout and "odd: " in done.output
