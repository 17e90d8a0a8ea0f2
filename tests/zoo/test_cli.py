"""The `zoo` command as its user meets it: what it prints, what it refuses and how."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT, STORIES
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, LlamaForCausalLM

from configuration_zoo import ZooConfig
from configuration_zoo.presets import PRESETS


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """The demo's checkpoint as a zoo folder; tests copy it before they change it."""
    import conversion

    folder = tmp_path_factory.mktemp("cli") / "stories"
    conversion.convert(STORIES, folder, progress=False)
    return folder


@pytest.fixture
def copy(converted, tmp_path):
    return Path(shutil.copytree(converted, tmp_path / "copy"))


def change_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(content))


# -- starting up ----------------------------------------------------------------------------------------------------


def test_help_loads_neither_torch_nor_transformers():
    code = "import sys, zoo.cli.main; print({'torch', 'transformers', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_subcommand_explains_itself(zoo):
    code, overview, _ = zoo("--help")
    assert code == 0
    for command in ("convert", "export", "flags", "generate", "inspect", "verify", "presets"):
        assert command in overview
        code, out, err = zoo(command, "--help")
        assert (code, err) == (0, "") and f"Usage: zoo {command}" in out


def test_no_arguments_show_the_help(zoo):
    code, out, err = zoo()
    assert code == 2 and "Usage: zoo" in out + err


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "zoo", "presets"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "palm-540b" in done.stdout


# -- convert --------------------------------------------------------------------------------------------------------


def test_convert_there_and_back(zoo, tmp_path):
    code, out, _ = zoo("convert", STORIES, tmp_path / "zoo", "--no-progress")
    assert code == 0 and "260,032 parameters" in out
    code, out, _ = zoo("convert", tmp_path / "zoo", tmp_path / "back", "--to", "llama", "--no-progress", "--json")
    assert code == 0 and json.loads(out)["model_type"] == "llama"
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (STORIES, tmp_path / "back"))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)


# -- generate -------------------------------------------------------------------------------------------------------


def test_generate_continues_greedily_as_transformers_does(zoo, converted):
    code, out, err = zoo("generate", converted, "--prompt", "Once upon a time", "--max-new-tokens", 20, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    model = LlamaForCausalLM.from_pretrained(STORIES)
    prompt = torch.tensor([report["tokens"][: report["prompt_tokens"]]])
    assert report["tokens"] == model.generate(prompt, max_new_tokens=20, do_sample=False)[0].tolist()


def test_generate_streams_the_same_text(zoo, converted):
    arguments = ("generate", converted, "--prompt", "Once upon a time", "--max-new-tokens", 20)
    _, streamed, _ = zoo(*arguments)
    _, whole, _ = zoo(*arguments, "--json")
    assert streamed.strip() == json.loads(whole)["text"].strip()


def test_generate_runs_a_foreign_folder_without_converting_it(zoo):
    code, out, _ = zoo("generate", STORIES, "--prompt", "Once upon a time", "--max-new-tokens", 8)
    assert code == 0 and out.startswith("Once upon a time, there was")


def test_a_seed_repeats_and_another_differs(zoo, converted):
    arguments = ("generate", converted, "--prompt", "Once", "--max-new-tokens", 24, "--temperature", 1.5, "--seed")
    texts = [zoo(*arguments, seed)[1] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_installed_classes_run_a_zoo_folder_whatever_code_it_brings(zoo, copy):
    (copy / "modeling_zoo.py").write_text("raise RuntimeError('the folder ran its own code')")
    arguments = ("generate", copy, "--prompt", "Once", "--max-new-tokens", 2)
    assert zoo(*arguments)[0] == 0


def test_foreign_code_is_refused_without_the_flag(zoo, copy):
    change_config(copy, model_type="unheard_of")
    code, _, err = zoo("generate", copy, "--prompt", "Once")
    assert code == 1 and "--trust-remote-code" in err and err.count("\n") == 1


def test_trusted_code_is_the_folders_own(zoo, copy):
    """Although classes of the same model_type are installed and registered."""
    with open(copy / "modeling_zoo.py", "a") as file:
        file.write("\nprint('the code of the folder')\n")
        file.write("ZooForCausalLM.generate = lambda self, input_ids, **options: input_ids.repeat(1, 2)\n")
    arguments = ("generate", copy, "--prompt", "Once", "--max-new-tokens", 2, "--json")
    code, out, err = zoo(*arguments, "--trust-remote-code")
    assert code == 0, err
    shown, report = out.split("\n", 1)
    tokens = json.loads(report)["tokens"]
    assert shown == "the code of the folder" and tokens == 2 * tokens[: len(tokens) // 2]
    assert "the code of the folder" not in zoo(*arguments)[1]


# -- inspect --------------------------------------------------------------------------------------------------------


def filled(model, length):
    """Bytes of a real cache after `length` tokens."""
    cache = DynamicCache(config=model.config)
    model(torch.ones(1, length, dtype=torch.long), past_key_values=cache)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("which", ["foreign folder", "zoo folder", "config.json"])
def test_inspect_counts_what_the_real_model_has(zoo, converted, which):
    path = {"foreign folder": STORIES, "zoo folder": converted, "config.json": STORIES / "config.json"}[which]
    code, out, _ = zoo("inspect", path, "--json")
    report = json.loads(out)
    model = LlamaForCausalLM.from_pretrained(STORIES)
    assert code == 0
    assert report["parameters"] == report["active_parameters"] == model.num_parameters()
    assert report["embedding_parameters"] == model.get_input_embeddings().weight.numel()
    for layer, real in zip(report["layers"], model.model.layers, strict=True):
        assert layer["parameters"] == sum(parameter.numel() for parameter in real.parameters())
    assert report["cache_bytes_per_token"] == filled(model, 7) - filled(model, 6)
    assert report["cache_bytes_at_full_length"] == 512 * report["cache_bytes_per_token"]


def test_inspect_shows_contexts_and_bounded_caches(zoo, tmp_path):
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 80}
    sizes |= {"layer_types": ["sliding_attention", "full_attention", "chunked_attention"], "num_hidden_layers": 3}
    sizes |= {"sliding_window": 10, "attention_chunk_size": 20, "max_position_embeddings": 100, "vocab_size": 70}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "zoo", "dtype": "float32"} | sizes))
    report = json.loads(zoo("inspect", tmp_path, "--json")[1])
    assert [layer["context"] for layer in report["layers"]] == ["window 10", "full", "chunk 20"]
    # keys and values, 2 heads of 8 channels, 4 bytes
    per_token = 2 * 2 * 8 * 4
    assert [layer["cache_bytes_per_token"] for layer in report["layers"]] == [per_token] * 3
    # In a window the token itself is the last: it is not cached yet.
    assert report["cache_bytes_at_full_length"] == (9 + 100 + 19) * per_token
    assert report["cache_bytes_per_token"] == per_token and report["window_bytes"] == (9 + 19) * per_token
    cache = json.loads(zoo("inspect", tmp_path, "--context", "5", "--batch", "3", "--json")[1])["cache"]
    assert (cache["bytes"], cache["window_bytes"]) == (3 * 15 * per_token, 10 * per_token)
    halved = json.loads(zoo("inspect", tmp_path, "--dtype", "bfloat16", "--json")[1])
    assert (
        2 * halved["cache"]["bytes"] == report["cache_bytes_at_full_length"] and 2 * halved["bytes"] == report["bytes"]
    )
    table = zoo("inspect", tmp_path)[1]
    assert "window 10" in table and "chunk 20" in table and "gated silu 80" in table


def test_a_state_is_counted_once_and_not_per_token(zoo, tmp_path):
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "vocab_size": 70, "max_position_embeddings": 100}
    mixers = {"layer_types": ["linear_attention", "full_attention"], "linear_attention_type": "delta_net"}
    config = {"model_type": "zoo", "dtype": "bfloat16", "num_hidden_layers": 2} | sizes | mixers
    (tmp_path / "config.json").write_text(json.dumps(config))
    linear, full = json.loads(zoo("inspect", tmp_path, "--json")[1])["layers"]
    assert (linear["context"], linear["cache_bytes_per_token"]) == ("state", 0)
    # A float32 state of 12 x 12 in each of 4 heads, and the last inputs of a convolution over queries, keys and values.
    window = linear["state_bytes"] - 4 * 12 * 12 * 4
    assert window in (3 * 48 * 3 * 2, 3 * 48 * 4 * 2)
    assert (full["state_bytes"], full["cache_bytes_per_token"]) == (0, 2 * 48 * 2)


HEADS_OF_MECHANISMS = {
    "gated_delta_net": ("gated_delta_net 2/6 x 12/20", {"linear_num_key_heads": 2, "linear_num_value_heads": 6,
                                                        "linear_value_head_dim": 20}),
    "lightning_attention": ("lightning_attention 4/4 x 12", {}),
    "mamba2": ("mamba2 2/6 x 20, 10 states", {"linear_num_key_heads": 2, "linear_num_value_heads": 6,
                                              "linear_key_head_dim": 10, "linear_value_head_dim": 20}),
    "mamba": ("mamba 1/1 x 96, 16 states", {}),
    "rg_lru": ("rg_lru 4 x 12", {}),
    "short_conv": ("short_conv 3 taps", {}),
}  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mechanism", HEADS_OF_MECHANISMS)
def test_inspect_shows_the_heads_of_a_recurrence_alone_and_beside_attention(zoo, tmp_path, mechanism):
    text, fields = HEADS_OF_MECHANISMS[mechanism]
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 70}
    config = {"model_type": "zoo", "num_hidden_layers": 2, "linear_attention_type": mechanism} | sizes | fields
    for word, shown in (("linear_attention", text), ("hybrid", f"grouped_query 4/2 x 12 + {text}")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"layer_types": [word, "full_attention"]}))
        rows = zoo("inspect", tmp_path)[1].splitlines()
        assert any(shown in row and row.lstrip().startswith("0") for row in rows)


@pytest.mark.parametrize("name", ["gpt2", "palm-8b"])
def test_a_preset_has_the_parameters_its_paper_says(zoo, name):
    report = json.loads(zoo("inspect", name, "--json")[1])
    assert report["parameters"] == pytest.approx(PRESETS[name].parameters, rel=0.01)


def test_inspect_says_what_running_and_training_cost(zoo):
    """Llama 2 7B's shape: 6.7 billion parameters, of which all but a table are multiplied twice a token."""
    options = ("--context", "2048", "--gpu", "h100", "--gpus", "8", "--tokens", "1T", "--utilization", "0.5")
    report = json.loads(zoo("inspect", "llama-7b", *options, "--json")[1])
    multiplied = report["parameters"] - 32000 * 4096 - (2 * 32 + 1) * 4096
    per_token = 2 * multiplied + 32 * 4 * 4096 * 2048
    assert report["flops"]["decode"] == report["flops"]["prompt"] == per_token
    assert report["flops"]["train"] == 3 * per_token
    weights = 2 * (report["parameters"] - 32000 * 4096)
    assert report["bytes_moved_per_token"] == weights + 2049 * 2 * 32 * 4096 * 2
    hours = 3 * per_token * 1e12 / (8 * 989.5e12 * 0.5) / 3600
    assert report["training_time"]["hours"] == pytest.approx(hours)
    said = zoo("inspect", "llama-7b", *options)[1]
    assert f"{hours:,.0f} hours for 1T tokens on 8 x h100 at 50% of peak" in said and "fit one" in said


def test_idle_experts_are_not_active(zoo):
    """Grok-1: 8 experts of three 6144 x 32768 matrices in each of 64 layers, two visited."""
    report = json.loads(zoo("inspect", "grok-1", "--json")[1])
    assert report["parameters"] - report["active_parameters"] == 64 * 6 * 3 * 6144 * 32768
    assert "2 of 8 experts" in zoo("inspect", "grok-1")[1]


def test_layers_that_predict_further_tokens_are_not_active(zoo, tmp_path):
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 2, "vocab_size": 50}
    reports = []
    for name, count in (("plain", 0), ("further", 2)):
        ZooConfig(**sizes, num_mtp_layers=count).to_json_file(tmp_path / f"{name}.json")
        reports.append(json.loads(zoo("inspect", tmp_path / f"{name}.json", "--json")[1]))
    plain, further = reports
    assert further["parameters"] - plain["parameters"] == further["prediction_parameters"] > 0
    assert further["active_parameters"] == plain["active_parameters"] == plain["parameters"]
    assert "in layers that predict further tokens" in zoo("inspect", tmp_path / "further.json")[1]


def test_a_sparse_pattern_is_the_context_of_its_layers(zoo):
    layers = json.loads(zoo("inspect", "gpt3-175b", "--json")[1])["layers"]
    assert [layer["context"] for layer in layers] == ["full", "banded 256"] * 48


def test_presets_are_listed_and_printed_as_configs(zoo):
    assert "palm-540b" in zoo("presets")[1]
    config = json.loads(zoo("presets", "palm-540b")[1])
    assert config["model_type"] == "zoo" and config["num_hidden_layers"] == 118


# -- verify ---------------------------------------------------------------------------------------------------------


def test_verify_finds_nothing_in_a_faithful_copy(zoo, converted):
    code, out, _ = zoo("verify", STORIES, converted, "--json")
    report = json.loads(out)
    assert code == 0 and report["equal"] and report["first_diverging_layer"] is None
    assert report["greedy_tokens_equal"] == 16
    assert [report[side]["class"] for side in ("source", "target")] == ["LlamaForCausalLM", "ZooForCausalLM"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.mlp.up_proj.weight", "layer 0"),
        ("model.layers.3.self_attn.o_proj.weight", "layer 3"),
    ],
)
def test_verify_names_the_first_layer_that_diverges(zoo, copy, tensor, expected):
    tensors = load_file(copy / "model.safetensors")
    tensors[tensor] *= 1.01
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    code, out, err = zoo("verify", STORIES, copy, "--json")
    report = json.loads(out)
    assert (code, err) == (1, "") and not report["equal"]
    assert report["first_diverging_layer"] == expected
    shown = zoo("verify", STORIES, copy)[1]
    assert next(line for line in shown.splitlines() if "first to diverge" in line).strip().startswith(expected)


def test_verify_says_that_nan_cannot_be_compared(zoo, copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    code, out, _ = zoo("verify", STORIES, copy, "--json", "--new-tokens", 0)
    report = json.loads(out, parse_constant=pytest.fail)
    assert code == 1 and report["largest_relative_difference"] is None
    assert report["first_diverging_layer"] == "layer 2"


# -- wrong input ----------------------------------------------------------------------------------------------------

WRONG = {
    "no such folder": (("generate", "nowhere", "--prompt", "x"), 1, "nowhere is neither a folder nor a Hub id"),
    "no config": (("inspect", "{tmp}"), 1, "has no config.json"),
    "no such file": (("inspect", "no/config.json"), 1, "neither a folder nor a file"),
    "no such preset": (("inspect", "gpt3-175"), 1, "Did you mean 'gpt3-175b'?"),
    "no such preset to print": (("presets", "palm-540"), 1, "Did you mean 'palm-540b'?"),
    "no such family": (("convert", "{zoo}", "{tmp}/new", "--to", "lama"), 1, "Did you mean 'llama', "),
    "not expressible": (("convert", "{zoo}", "{tmp}/new", "--to", "qwen3"), 1, "qk_norm"),
    "of another kind": (("convert", "{zoo}", "{tmp}/new", "--to", "mamba"), 1, "which this model has not"),
    "wrong dtype": (("verify", "{zoo}", "{zoo}", "--dtype", "int4"), 1, "--dtype int4 is not one of"),
    "no such gpu": (("inspect", "llama-7b", "--gpu", "h1000"), 1, "--gpu h1000 is not one of a100, h100"),
    "no gpu": (("inspect", "llama-7b", "--tokens", "10B"), 1, "--tokens 10B needs --gpu, one of"),
    "no amount": (("inspect", "llama-7b", "--tokens", "many", "--gpu", "h100"), 1, "--tokens many is not a number"),
    "no optimizer": (("inspect", "llama-7b", "--train", "--optimizer", "lion"), 1, "--optimizer lion is not one of"),
    "wrong attention": (("generate", "{zoo}", "--prompt", "x", "--attn", "fancy"), 1, "fancy"),
    "greedy and sampled": (("generate", "{zoo}", "--prompt", "x", "--temperature", "0", "--top-k", "3"), 1, "top_k"),
    "no chat template": (("generate", "{zoo}", "--prompt", "x", "--chat"), 1, "has none"),
    "misspelt option": (("inspect", "{zoo}", "--jsn"), 2, "--jsn"),
    "missing argument": (("verify", "{zoo}"), 2, "target"),
    "out of range": (("generate", "{zoo}", "--prompt", "x", "--top-p", "2"), 2, "--top-p"),
    "no such command": (("convrt",), 2, "convrt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_sentence_and_an_exit_code(zoo, converted, tmp_path, name):
    arguments, expected, fragment = WRONG[name]
    code, out, err = zoo(*(argument.format(tmp=tmp_path, zoo=converted) for argument in arguments))
    assert (code, out) == (expected, "")
    assert fragment in err and err.startswith("zoo: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("inspect",), ("generate", "--prompt", "x")], ids=" ".join)
@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"norm_type": "rms_nrom"}, ("norm_type='rms_nrom'", "Did you mean 'rms_norm'?")),
        ({"hiden_size": 64}, ("hiden_size", "Did you mean 'hidden_size'?")),
        ({"index_topk": 8}, ("index_topk",)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_bad_config_is_named_by_field(zoo, copy, command, changes, fragments):
    change_config(copy, **changes)
    code, out, err = zoo(command[0], copy, *command[1:])
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert all(fragment in err for fragment in fragments)


def test_a_folder_without_weights_or_with_broken_ones(zoo, copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    code, _, err = zoo("generate", copy, "--prompt", "x")
    assert code == 1 and err.count("\n") == 1
    weights.unlink()
    code, _, err = zoo("generate", copy, "--prompt", "x")
    assert code == 1 and err.count("\n") == 1 and "safetensors" in err


def test_a_pickle_is_never_opened(zoo, copy, tmp_path):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    back = ("convert", copy, tmp_path / "back", "--to", "llama")
    for arguments in (("generate", copy, "--prompt", "x"), ("verify", STORIES, copy), back):
        code, out, err = zoo(*arguments)
        assert (code, out) == (1, "") and err.count("\n") == 1 and "safetensors" in err


def test_a_folder_without_tokenizer(zoo, copy):
    for path in copy.glob("tokenizer*"):
        path.unlink()
    code, _, err = zoo("generate", copy, "--prompt", "x")
    assert code == 1 and "no tokenizer files" in err
    assert zoo("verify", copy, copy)[0] == 0


def test_a_defect_of_zoo_is_told_apart(zoo, monkeypatch):
    monkeypatch.setattr("description_zoo.measure.measure", lambda *_: {}["nothing"])
    code, _, err = zoo("inspect", "gpt2")
    assert code == 1 and "unexpected KeyError" in err and "ZOO_DEBUG=1" in err
    monkeypatch.setenv("ZOO_DEBUG", "1")
    assert "Traceback" in zoo("inspect", "gpt2")[2]
