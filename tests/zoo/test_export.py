"""The two files of code in a model folder: `zoo export`, and that they are the same model as the installed package."""

import json
import os
import subprocess
import sys
import tomllib

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from places import ROOT
from random_models import build, randomize, their_class_config
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from configuration_zoo.presets import PRESETS
from configuration_zoo.version import TRANSFORMERS
from conversion import family_of, import_config, load
from conversion.engine.registry import known_families
from modeling_zoo import ZooConfig, ZooForCausalLM
from modeling_zoo.export import AUTO_MAP, FILES, code
from zoo.cli.main import main

INT8 = {"cache_implementation": "quantized", "cache_config": {"backend": "int8"}}
TINY = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def folder(tmp_path):
    model = ZooForCausalLM(ZooConfig(**TINY))
    randomize(model)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def remote(folder):
    """The model of a folder by the folder's own code, although zoo is installed, as `AutoModelForCausalLM` makes it."""
    names = {"AutoConfig": "configuration_zoo.ZooConfig", "AutoModelForCausalLM": "modeling_zoo.ZooForCausalLM"}
    config, model = (get_class_from_dynamic_module(name, str(folder)) for name in names.values())
    assert model is not ZooForCausalLM and model.__module__.startswith("transformers_modules.")
    for auto_class, own in zip(names, (config, model), strict=True):
        own.register_for_auto_class(auto_class)
    return model.from_pretrained(folder, config=config.from_pretrained(folder)).eval()


@pytest.fixture
def zoo(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["zoo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def test_a_folder_holds_two_files_of_code(folder):
    assert sorted(path.name for path in folder.glob("*.py")) == sorted(FILES)


def test_a_copy_that_is_saved_again_holds_the_same_two(folder, tmp_path):
    remote(folder).save_pretrained(tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again").glob("*.py")) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_the_files_are_formatted(folder):
    command = [sys.executable, "-m", "ruff", "format", "--check", "--config", ROOT / "pyproject.toml"]
    done = subprocess.run([*command, *(folder / name for name in FILES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_another_process_writes_the_same_bytes():
    program = """
import sys
import tomllib
from modeling_zoo import ZooConfig
from modeling_zoo.export import code
sys.stdout.write(chr(0).join(code(ZooConfig.preset("llama-7b")).values()))
"""
    texts = []
    for seed in ("1",):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment)
        texts.append(done.stdout.decode())
    assert texts == ["\0".join(code(ZooConfig.preset("llama-7b")).values())]


def test_check_finds_a_change_and_export_puts_it_right(zoo, folder):
    assert zoo("export", folder, "--check")[0] == 0
    path = folder / "modeling_zoo.py"
    text = path.read_bytes()
    path.write_bytes(text.replace(b"import torch\n", b"import torch \n", 1))
    status, _, err = zoo("export", folder, "--check")
    assert status == 1 and "modeling_zoo.py is not what" in err and err.count("\n") == 1
    (folder / "configuration_zoo.py").unlink()
    assert "configuration_zoo.py and modeling_zoo.py are not what" in zoo("export", folder, "--check")[2]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {}}))
    assert zoo("export", folder)[0] == 0 and path.read_bytes() == text
    assert json.loads((folder / "config.json").read_text()) == config | {"auto_map": AUTO_MAP}
    assert zoo("export", folder, "--check")[0] == 0


def test_a_folder_of_another_kind_is_sent_to_convert(zoo, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    status, _, err = zoo("export", tmp_path)
    assert status == 1 and "zoo convert" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]


def test_a_link_is_replaced_and_not_followed(folder, tmp_path):
    kept = tmp_path / "kept.py"
    kept.write_text("# mine\n")
    for name in FILES:
        (folder / name).unlink()
        (folder / name).symlink_to(kept)
    ZooConfig(**TINY).save_pretrained(folder)
    assert kept.read_text() == "# mine\n"
    assert {name: (folder / name).read_text() for name in FILES} == code(ZooConfig(**TINY))
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_config_that_is_not_the_folders_own_is_refused(zoo, folder, tmp_path):
    (folder / "config.json").rename(tmp_path / "config.json")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    status, _, err = zoo("export", folder)
    assert status == 1 and "config.json" in err and err.count("\n") == 1


@pytest.mark.sampled(22)
@pytest.mark.parametrize("name", [name for name in known_families() if family_of(name).tiny])
def test_the_code_of_a_folder_is_the_model_of_the_package(name, tmp_path):
    family = family_of(name)
    build(their_class_config(name, family, family.tiny[0]), family).save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs").eval()
    ours.save_pretrained(tmp_path / "zoo")
    copy = remote(tmp_path / "zoo")
    assert list(copy.state_dict()) == list(ours.state_dict())
    # Tensors of a mapped file lie anywhere in memory, where a product may be summed in another order.
    for parameter in copy.parameters():
        parameter.data = parameter.data.clone()
    tokens = torch.randint(1, 60, (2, 9))
    with torch.no_grad():
        assert torch.equal(copy(tokens).logits, ours(tokens).logits)
    assert_same_ways(copy, ours, tokens)


def assert_same_ways(copy, ours, tokens):
    """Both decode the same tokens over every kind of cache, and learn the same gradients."""
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    for kind in ({}, {"cache_implementation": "static"}, INT8):
        found = [generated(model, tokens, options | kind) for model in (copy, ours)]
        assert found[0] == found[1], kind
    for model in (copy, ours):
        model.train()
        model(tokens, labels=tokens).loss.backward()
        model.zero_grad()
        model.eval()


def generated(model, tokens, options):
    """The tokens that follow, or in what words the model refuses."""
    try:
        return model.generate(tokens, attention_mask=torch.ones_like(tokens), **options).tolist()
    except (ValueError, NotImplementedError) as error:
        return str(error)


# -- what a folder leaves out ------------------------------------------------------------------------------------------


def lines(texts):
    return sum(text.count("\n") for text in texts.values())


def test_a_folder_has_the_concepts_of_its_model_alone(folder):
    text = (folder / "modeling_zoo.py").read_text()
    assert "class GroupedQueryAttention" in text and "class RMSNorm" in text
    for name in ("LatentAttention", "DeltaAttention", "SelectiveScan", "SparseMLP", "LayerNorm", "SlidingLayer"):
        assert f"class {name}(" in code()["modeling_zoo.py"] and f"class {name}(" not in text


def test_a_folder_with_prediction_layers_loads_by_its_own_code(tmp_path):
    model = ZooForCausalLM(ZooConfig(**TINY | {"num_mtp_layers": 2})).eval()
    randomize(model)
    model.save_pretrained(tmp_path)
    again = remote(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys() and any(".mtp" in f".{n}" for n in model.state_dict())
    tokens = torch.randint(0, 61, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(("name", "most"), [("llama", 4250), ("deepseek_v3", 6350)])
def test_both_files_together_keep_to_a_number_of_lines(name, most):
    family = family_of(name)
    assert lines(code(import_config(their_class_config(name, family, family.tiny[0]).to_dict()))) <= most


def test_sizes_and_depth_change_no_byte_of_the_code():
    wide = {"hidden_size": 48, "num_hidden_layers": 5, "num_key_value_heads": 2, "vocab_size": 99}
    assert code(ZooConfig(**TINY)) == code(ZooConfig(**TINY | wide))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"attention_type": "latent", "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}, "latent"),
        ({"mlp_layer_types": ["sparse"] * 2, "num_experts": 4, "num_experts_per_tok": 2}, "sparse"),
        (
            {"layer_types": ["linear_attention"] * 2, "linear_attention_type": "gated_delta_net"},
            "(linear_attention|gated_delta_net)",
        ),
        ({"norm_type": "layer_norm"}, "layer_norm"),
        # A word that the folder has, for another field.
        ({"qk_norm": "rms_norm"}, "rms_norm"),
        ({"block_type": "parallel"}, "parallel"),
        ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 4}, "sliding_attention"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_concept_that_a_folder_leaves_out_is_refused_and_all_of_them_are_at_hand(change, word, zoo, folder):
    held = json.loads((folder / "config.json").read_text())
    wanted = json.loads(ZooConfig(**TINY | change).to_json_string())
    config_class = get_class_from_dynamic_module("configuration_zoo.ZooConfig", str(folder))
    refusal = rf"{word}'.* is of a concept whose code is not in this folder: `zoo export FOLDER --all`"
    with pytest.raises((ValueError, StrictDataclassError), match=refusal):
        config_class(**TINY | change)
    # A configuration that has it, beside a model that has not.
    (folder / "configuration_zoo.py").write_text(code()["configuration_zoo.py"])
    config_class = get_class_from_dynamic_module("configuration_zoo.ZooConfig", str(folder))
    model_class = get_class_from_dynamic_module("modeling_zoo.ZooForCausalLM", str(folder))
    with pytest.raises(ValueError, match=refusal):
        model_class(config_class(**TINY | change))
    assert zoo("export", folder, "--all")[:2] == (0, "modeling_zoo.py written.\n")
    assert zoo("export", folder, "--check")[0] == 0
    assert {name: (folder / name).read_text() for name in FILES} == code()
    (folder / "config.json").write_text(json.dumps(wanted | {"auto_map": held["auto_map"]}))
    model = get_class_from_dynamic_module("modeling_zoo.ZooForCausalLM", str(folder))
    config = get_class_from_dynamic_module("configuration_zoo.ZooConfig", str(folder)).from_pretrained(folder)
    with torch.no_grad():
        assert model(config).eval()(torch.tensor([[3, 4, 5]])).logits.isfinite().all()


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", PRESETS)
def test_no_name_is_missing_and_nothing_is_unused(name, tmp_path):
    """Of the code for each preset, by ruff; it is formatted, too."""
    for file, text in code(ZooConfig.preset(name)).items():
        (tmp_path / file).write_text(text)
    ruff, options = [sys.executable, "-m", "ruff"], ["--config", ROOT / "pyproject.toml", tmp_path]
    checks = [*ruff, "check", "--select", "F821,F811,F401", *options], [*ruff, "format", "--check", *options]
    for command in checks:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("everything", [False, True])
def test_an_older_transformers_is_told_so_in_a_sentence(everything, tmp_path):
    """By the first lines that run, before anything is imported that it has not."""
    (tmp_path / "transformers.py").write_text('__version__ = "4.57.1"\n')
    text = code(None if everything else ZooConfig.preset("llama-7b"))["configuration_zoo.py"]
    (tmp_path / "configuration_zoo.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import configuration_zoo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"ImportError: this model needs transformers {TRANSFORMERS} or newer, and 4.57.1 is"), said


def test_the_oldest_transformers_is_that_of_the_distribution():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"transformers>={TRANSFORMERS},<6" in wanted
