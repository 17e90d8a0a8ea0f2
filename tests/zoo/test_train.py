"""`zoo train`: recipes, text, rows, the run itself, and going on with one that was cut off."""

import json
import math
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from description_zoo.gpus import GPUS, gpu_named
from description_zoo.training_memory import training_memory
from zoo.cli.main import app
from zoo.training import RecipeError, read_recipe, train
from zoo.training.packing import best_fit, concatenate, pack
from zoo.training.recipe import DataRecipe, SamplesRecipe, TokenizerRecipe
from zoo.training.run import enough, prepare
from zoo.training.samples import write
from zoo.training.text import divide
from zoo.training.tokens import PackedRows, pack_texts, train_tokenizer
from zoo.training.trainer import ZooTrainer

STORIES = [f"Once upon a time there was a {name} who had {count} red balls.\n" for name in ("cat", "dog", "bird")
           for count in range(2, 60)]  # fmt: skip
MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "stories.txt").write_text("<|end|>".join(STORIES))
    training = {
        "output_dir": str(tmp_path / "output"), "max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 2,
        "eval_steps": 3, "save_steps": 3,
    }  # fmt: skip
    return {
        "model": MODEL,
        "tokenizer": {"vocab_size": 300},
        "data": {"files": [str(tmp_path / "*.txt")], "separator": "<|end|>", "length": 32, "held_out": 0.1},
        "samples": {"every": 3, "prompts": ["Once"], "max_new_tokens": 4},
        "training": training,
    }


def run(recipe, *overrides, **options):
    return train(recipe, overrides, shows=False, **options)


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


# -- rows ------------------------------------------------------------------------------------------------------------


def test_best_fit_wastes_little_and_cuts_nothing():
    lengths = torch.randint(1, 40, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    bins = best_fit(lengths, 64)
    assert sorted(index for row in bins for index in row) == list(range(500))
    assert max(sum(lengths[index] for index in row) for row in bins) <= 64
    assert len(bins) <= 1.03 * sum(lengths) / 64


@pytest.mark.parametrize("packing", ["best_fit", "concatenated"])
@pytest.mark.parametrize("buffer", [7, 1000])
def test_every_token_but_the_first_of_a_document_is_predicted_once(packing, buffer):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 90, (60,), generator=generator).tolist()
    documents = [torch.randint(1, 1000, (length,), generator=generator).tolist() for length in lengths]
    rows = list(pack(iter(documents), 32, 0, packing, buffer))
    assert all(len(row[name]) == 32 for row in rows for name in ("input_ids", "labels", "position_ids"))
    predicted = Counter(label for row in rows for label in row["labels"][1:] if label != -100)
    expected = Counter(token for document in documents for token in document[1:])
    if packing == "best_fit":
        assert predicted == expected
        assert sum(token == -100 for row in rows for token in row["labels"]) < 0.15 * 32 * len(rows)
    else:
        assert predicted <= expected
    for row in rows:
        starts = [index for index, position in enumerate(row["position_ids"]) if position == 0]
        assert starts[0] == 0 and all(row["labels"][index] == -100 for index in starts)
        steps = zip(row["position_ids"], row["position_ids"][1:], strict=False)
        assert all(after in (0, before + 1) for before, after in steps)


def test_concatenated_rows_are_full():
    rows = list(concatenate([[1, 2, 3], [4, 5, 6, 7, 8]], 4))
    assert [row["input_ids"] for row in rows] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert rows[0]["position_ids"] == [0, 1, 2, 0]


def test_packed_documents_are_read_apart(recipe):
    """The loss of a packed row is that of its documents alone."""
    prepared = prepare(read_recipe(recipe))
    model = AutoModelForCausalLM.from_config(prepared.config).eval()
    batch = {name: value[None] for name, value in prepared.rows[0].items()}
    packed = model(**batch).logits[0]
    starts = [index for index, position in enumerate(batch["position_ids"][0].tolist()) if position == 0] + [32]
    assert len(starts) > 2
    for start, end in zip(starts, starts[1:], strict=False):
        alone = model(batch["input_ids"][:, start:end]).logits[0]
        torch.testing.assert_close(packed[start:end], alone, rtol=1e-4, atol=1e-5)


# -- text and tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "stream"])
def test_text_comes_from_files_and_data_sets(kind, tmp_path):
    fields = {"files": [f"part*.{kind}"], "separator": "|", "length": 16, "held_out": 0.1}
    if kind == "txt":
        (tmp_path / "part-0.txt").write_text("|".join(STORIES[:60]))
        (tmp_path / "part-1.txt").write_text("|".join(STORIES[60:]))
    elif kind == "jsonl":
        (tmp_path / "part.jsonl").write_text("\n".join(json.dumps({"text": story}) for story in STORIES))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": STORIES}), tmp_path / "part.parquet")
    if kind == "stream":
        fields = {"dataset": str(tmp_path), "length": 16, "held_out_rows": 10}
    texts, held = divide(DataRecipe(**fields), tmp_path)
    assert list(texts()) == list(texts())
    assert sorted([*texts(), *held]) == sorted(STORIES)
    assert 0 < len(held) < 30


def test_the_end_of_a_single_document_is_held_out(tmp_path):
    (tmp_path / "one.txt").write_text("abcdefghij" * 10)
    texts, held = divide(DataRecipe(files=["one.txt"], held_out=0.1), tmp_path)
    assert (list(texts()), held) == (["abcdefghij" * 9], ["abcdefghij"])


@pytest.mark.parametrize(("kind", "size"), [("bpe", 300), ("bytes", 258)])
def test_a_trained_tokenizer_gives_every_text_back(kind, size):
    tokenizer = train_tokenizer(TokenizerRecipe(kind=kind, vocab_size=300), STORIES)
    assert len(tokenizer) == size
    text = "Łódź 犬\tnever seen\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert kind == "bpe" or len(ids) == len(text.encode())


def test_bits_per_byte_count_every_byte_once(recipe, tmp_path):
    """A model that knows nothing needs log2(vocabulary) bits for each token, the end of a document too."""
    prepared = prepare(read_recipe(recipe))
    model = AutoModelForCausalLM.from_config(prepared.config)
    torch.nn.init.zeros_(model.lm_head.weight)
    metrics = ZooTrainer(
        model=model, args=prepared.arguments, eval_dataset=prepared.held_out,
        optimizer_recipe=prepared.recipe.optimizer, held_out_bytes=prepared.held_out_bytes,
    ).evaluate()  # fmt: skip
    texts, held = divide(prepared.recipe.data, tmp_path)
    size = prepared.tokenizer.vocab_size
    tokens = sum(len(prepared.tokenizer(text)["input_ids"]) + 1 for text in held)
    assert metrics["eval_loss"] == pytest.approx(math.log(size), rel=1e-5)
    expected = tokens * math.log2(size) / sum(len(text.encode()) for text in held)
    assert metrics["eval_bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_held_out_text_is_cut_to_what_is_asked_for():
    tokenizer = train_tokenizer(TokenizerRecipe(kind="bytes"), [])
    kept = enough(["abcd", "x" * 100, "never"], tokenizer, 55)
    assert kept[0] == "abcd" and 40 < len(kept[1]) < 60 and len(kept) == 2
    rows = PackedRows(pack_texts(kept, tokenizer, DataRecipe(files=["-"], length=8)))
    assert (rows.rows["labels"][:, 1:] != -100).sum() == sum(len(text) + 1 for text in kept)


# -- the run ---------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_that_loads_anywhere(recipe, tmp_path):
    done = run(recipe, "max_steps=60", "training.learning_rate=1e-2", "eval_steps=60", "save_steps=60", "every=60")
    output = tmp_path / "output"
    assert done["loss"] < 3.6 < math.log(300) and done["steps_done"] == 60 and done["tokens_per_second"] > 0
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    model = AutoModelForCausalLM.from_pretrained(output / "model", trust_remote_code=True)
    assert tokenizer.decode(model.generate(**tokenizer("Once", return_tensors="pt"), max_new_tokens=3)[0])
    names = {path.name for path in output.iterdir()}
    assert names >= {"model", "tokenizer", "recipe.yaml", "log.json", "loss.png", "samples.jsonl", "checkpoint-60"}
    assert (output / "model" / "README.md").is_file()
    log = json.loads((output / "log.json").read_text())["history"]
    assert {"tokens_per_second", "flops_per_second", "mfu", "grad_norm"} <= log[0].keys()
    assert [line["step"] for line in map(json.loads, (output / "samples.jsonl").read_text().splitlines())] == [60]
    # What is written is the recipe that was run.
    again = read_recipe(output / "recipe.yaml")
    assert again.training["learning_rate"] == 1e-2 and again.model["hidden_size"] == 32
    with pytest.raises(RecipeError, match="holds a run: --resume goes on with it"):
        run(recipe)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "use_score_correction_bias": True}


@pytest.mark.parametrize("streams", [False, True], ids=["files", "stream"])
def test_a_resumed_run_ends_at_the_same_weights_bit_for_bit(streams, recipe, tmp_path, monkeypatch):
    """Cut off after a checkpoint, with dropout, Muon and a correction bias, it goes on as if it had not been."""
    recipe["model"] = MODEL | EXPERTS | {"residual_dropout": 0.1, "scoring_func": "sigmoid"}
    recipe["optimizer"] = {"name": "muon"}
    if streams:
        import pyarrow
        from pyarrow import parquet

        (tmp_path / "data").mkdir()
        parquet.write_table(pyarrow.table({"text": STORIES}), tmp_path / "data" / "part.parquet")
        recipe["data"] = {"dataset": str(tmp_path / "data"), "length": 32, "held_out_rows": 4, "buffer": 20}
    recipe["training"]["max_steps"] = 7
    run(recipe, f"output_dir={tmp_path / 'whole'}")
    step, steps = ZooTrainer.training_step, []

    def cut_off(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ZooTrainer, "training_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(recipe)
    run(recipe, resume=True)
    assert steps[4:] == [4, 3, 4, 5, 6]
    whole, resumed = weights(tmp_path / "whole" / "model"), weights(tmp_path / "output" / "model")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert any(value.any() for name, value in whole.items() if name.endswith("e_score_correction_bias"))


def test_samples_change_nothing(recipe, tmp_path):
    run(recipe, f"output_dir={tmp_path / 'with'}", "residual_dropout=0.1")
    run(recipe, f"output_dir={tmp_path / 'without'}", "residual_dropout=0.1", "samples.every=0")
    one, other = weights(tmp_path / "with" / "model"), weights(tmp_path / "without" / "model")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not (tmp_path / "without" / "samples.jsonl").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "with" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "with" / "model")
    texts = [write(model, tokenizer, "Once", SamplesRecipe(max_new_tokens=9, temperature=heat)) for heat in (0, 1, 1)]
    assert texts[1] == texts[2] != texts[0]


def test_a_trained_model_is_trained_further(recipe, tmp_path):
    first = run(recipe, "max_steps=30", "learning_rate=1e-2", "save_steps=30")
    more = recipe | {"model": {"path": first["model"]}, "tokenizer": {"path": first["model"]}}
    overrides = ("max_steps=2", f"output_dir={tmp_path / 'more'}", "output_z_loss_coef=1e-4")
    second = run(more, *overrides)
    assert second["loss"] == pytest.approx(first["loss"], abs=0.3)
    with pytest.raises(RecipeError, match="model.hidden_size: the model of model.path=.* has its own"):
        run(more, *overrides, "hidden_size=64", f"output_dir={tmp_path / 'else'}")


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("hiden_size=3", "--set hiden_size: nothing has this field. Did you mean 'hidden_size'?"),
        ("model.hiden_size=3", "model.hiden_size is not a field of model. Did you mean 'hidden_size'?"),
        ("data.lenght=3", "data.lenght is not a field of data. Did you mean 'length'?"),
        ("data.length=many", "data.length='many' must be int"),
        ("data.packing=best", "data.packing='best' is not one of ['best_fit', 'concatenated']"),
        ("data.dataset=x", "either data.files or data.dataset"),
        ("data.length=1", "data.length=1: a row has at least two tokens"),
        ("data.held_out=1.5", "data.held_out=1.5 is a share above 0 and below 1"),
        ("optimizer.name=lion", "optimizer.name='lion' is not one of ['adamw', 'muon']"),
        ("tokenizer.vocab_size=100", "tokenizer.vocab_size=100: there are 256 bytes and two tokens"),
        ("max_steps", "--set max_steps: write it as section.field=value"),
        ("training.seed=[1]", "training.seed=[1] must be int"),
        ("bf16=maybe", "training.bf16='maybe' must be bool"),
        ("training.max_steps=-1", "training.max_steps: the schedule warmup_stable_decay needs a number of steps"),
        ("data.files=[nowhere.txt]", "data.files: nowhere.txt matches no file"),
        ("data.length=100000", "data: the text makes no row"),
        ("hidden_act=sillu", "hidden_act='sillu'"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused_in_a_sentence(override, sentence, recipe, tmp_path):
    if override == "data.length=100000":
        recipe["data"]["packing"] = "concatenated"
    with pytest.raises(Exception) as refused:
        run(recipe, override)
    assert sentence in str(refused.value)
    assert not (tmp_path / "output" / "model").exists()


def test_numbers_are_read_as_people_write_them(tmp_path):
    (tmp_path / "r.yaml").write_text("training:\n  learning_rate: 3e-4\ndata:\n  files: [a.txt]\n")
    overrides = (
        "initializer.type=small",
        "weight_decay=1e-1",
        "report_to=tensorboard",
        "model.rope_parameters.rope_theta=5",
    )
    recipe = read_recipe(tmp_path / "r.yaml", overrides)
    assert (recipe.training["learning_rate"], recipe.training["weight_decay"]) == (3e-4, 0.1)
    assert recipe.model == {"initializer": {"type": "small"}, "rope_parameters": {"rope_theta": 5}}
    assert recipe.training["report_to"] == "tensorboard"


def test_the_command_says_what_it_will_cost(recipe, tmp_path):
    import yaml

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = CliRunner().invoke(app, ["train", str(path), "--dry-run", "--json", "--set", "max_steps=1000"])
    cost = json.loads(done.stdout)
    assert cost["tokens"] == 1000 * 4 * 32 and cost["parameters"] > 20_000 and cost["flops"] > 0
    assert cost["hours"] == pytest.approx(cost["flops"] / (cost["utilization"] * cost["peak_flops"]) / 3600)
    # What one device's rows take, as `zoo inspect` counts it; and what checkpointing leaves of it.
    config = prepare(read_recipe(path), progress=False).config
    memory = training_memory(type(config)(**config.to_diff_dict() | {"dtype": "float32"}), 32, 4)
    assert (cost["memory_bytes"], cost["activation_bytes"]) == (memory["total"], memory["activations"])
    options = ["--dry-run", "--json", "--set", "max_steps=1000", "--set", "gradient_checkpointing=true"]
    less = json.loads(CliRunner().invoke(app, ["train", str(path), *options]).stdout)
    assert less["activation_bytes"] == memory["activations_checkpointed"] and less["flops"] == cost["flops"]
    assert not (tmp_path / "output").exists()
    said = CliRunner().invoke(app, ["train", str(path), "--dry-run"]).stdout
    assert all(word in said for word in ("parameters", "FLOPs", "memory", "time"))
    missing = CliRunner().invoke(app, ["train", str(tmp_path / "none.yaml")])
    assert missing.exit_code and "none.yaml is not a file" in str(missing.exception)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: {hidden_size: 3, hidden_size: 4}", "is not YAML: 'hidden_size' twice"),
        ("model: {a: 2026-13-45}", "is not YAML: month must be in 1..12"),
        ("- model", "a recipe is a table of names and values, not list"),
        ("model: {", "is not YAML: while parsing a flow node"),
        ("[" * 5000, "is not YAML: "),
        (b"model: {a: \xff}", "is not a text in UTF-8: invalid start byte at byte 11"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, text, sentence):
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as refused:
        read_recipe(path)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_a_field_of_what_is_no_table_is_refused(recipe):
    with pytest.raises(RecipeError, match="hidden_size.x: hidden_size is 32 and has no field 'x'"):
        read_recipe(recipe, ["model.hidden_size.x=3"])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("NVIDIA L40S", "l40s"), ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA H100 PCIe", None), ("NVIDIA L4", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)  # fmt: skip
def test_a_device_is_known_by_its_name(name, key):
    assert gpu_named(name) is (GPUS[key] if key else None)
