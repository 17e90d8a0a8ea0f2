"""The engine around the rules: wrong input, what only the source knows, all or nothing, the command."""

import contextlib
import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from checkpoint_checks import assert_same_config, assert_same_tensors, batch, bits, tensors_of
from places import ROOT
from random_models import build, their_class_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from configuration_zoo import ZooConfig
from conversion import ConversionError, convert, export_config, family_of, import_config, known_families, load
from conversion.__main__ import main
from conversion.families.shared_common import tiny
from conversion.files.checkpoint import Checkpoint
from conversion.files.workspace import new_folder
from conversion.files.writer import ShardWriter, parse_size
from modeling_zoo import ZooForCausalLM

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def saved_llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def llama(saved_llama, tmp_path):
    """A tied llama folder of the test's own, and transformers' model: (folder, model)."""
    folder, model = saved_llama
    shutil.copytree(folder, tmp_path / "source")
    return tmp_path / "source", model


def save_llama(folder, **changes):
    config = their_class_config("llama", family_of("llama"), tiny(tie_word_embeddings=True, **changes))
    model = build(config)
    model.save_pretrained(folder)
    return folder, model


def rewrite(folder, change):
    """Changes the tensors of a single-file checkpoint with `change(dict)`."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return tensors


def edit_json(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))


def beside(folder):
    """Everything in the folder's parent but the source, hidden files too."""
    return sorted(name for name in os.listdir(folder.parent) if name != "source")


def refused(source, target, match, **options):
    """The conversion fails with one sentence and leaves nothing behind."""
    before = beside(target)
    with pytest.raises(ConversionError, match=match) as error:
        convert(source, target, **QUIET, **options)
    assert "\n" not in str(error.value)
    assert beside(target) == before


# -- wrong input ---------------------------------------------------------------------------------------------------


def break_model_type(folder):
    edit_json(folder / "config.json", model_type="lama")


def break_no_config(folder):
    (folder / "config.json").unlink()


def break_json(folder):
    (folder / "config.json").write_text('{"model_type": ')


def break_value(folder):
    edit_json(folder / "config.json", num_attention_heads="six")


def break_quantised(folder):
    edit_json(folder / "config.json", quantization_config={"quant_method": "fp8"})


def break_truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def break_garbage(folder):
    (folder / "model.safetensors").write_bytes(os.urandom(1000))


def break_empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def break_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_no_weights(folder):
    (folder / "model.safetensors").unlink()


def break_missing(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.input_layernorm.weight"))


def break_extra(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.1.self_attn.q_proj.bias": torch.zeros(72)}))


def break_shape(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(80, 47)}))


WRONG = [
    (
        break_model_type,
        r"'lama' is not known. Did you mean 'llama', '\w+' or '\w+'\? `zoo families` lists the \d+ that are.",
    ),
    (break_no_config, "has no config.json"),
    (break_json, "config.json cannot be read as JSON"),
    (break_value, "not a valid llama configuration: .*num_attention_heads"),
    (break_quantised, r"quantised \(fp8\)"),
    (break_truncated, "model.safetensors is cut off or damaged"),
    (break_garbage, "model.safetensors is cut off or damaged"),
    (break_empty, "model.safetensors is cut off or damaged"),
    (break_pickle, r"only pickled weights \(pytorch_model.bin\).*--allow-pickle"),
    (break_no_weights, "neither model.safetensors nor"),
    (break_missing, "1 tensor is missing from the checkpoint: 'model.layers.1.input_layernorm.weight'"),
    (break_extra, "holds 1 tensor .* does not have: 'model.layers.1.self_attn.q_proj.bias'"),
    (break_shape, r"'model.layers.2.mlp.up_proj.weight' has the wrong shape: .*\[80, 47\].*\[80, 48\]"),
]


@pytest.mark.parametrize(("breakage", "match"), WRONG, ids=[breakage.__name__ for breakage, _ in WRONG])
def test_wrong_source_is_refused(breakage, match, llama, tmp_path, capsys):
    source, _ = llama
    breakage(source)
    refused(source, tmp_path / "target", match)
    with pytest.raises(ConversionError, match=match):
        load(source)
    assert main([str(source), str(tmp_path / "target")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("python -m conversion: ") and error.count("\n") == 1


def sharded(folder, **weight_map):
    """Saves the model in shards and changes the index; a value of None removes an entry."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {name: file for name, file in (index["weight_map"] | weight_map).items() if file}
    path.write_text(json.dumps(index))
    return folder


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({NORM: "model-00099-of-00099.safetensors"}, "names 'model-00099-of-00099.safetensors', .*shard is missing"),
        ({NORM: "../outside.safetensors"}, "leads out of the folder"),
        ({NORM: "/etc/passwd"}, "leads out of the folder"),
        ({NORM: "link.safetensors"}, "leads out of the folder"),
        ({NORM: "model-00001-of-00014.safetensors"}, f"says that '{NORM}' is in .* not there"),
        ({NORM: None}, f"holds '{NORM}', which .* does not list"),
    ],
)
def test_wrong_index_is_refused(entry, match, llama, tmp_path):
    source = sharded(llama[0], **entry)
    shutil.copyfile(next(source.glob("model-*")), tmp_path / "outside.safetensors")
    if "link.safetensors" in entry.values():
        (source / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    refused(source, tmp_path / "target", match)


def test_a_single_file_that_is_a_link_out_of_the_folder_is_refused(llama, tmp_path):
    source, _ = llama
    (source / "model.safetensors").rename(tmp_path / "elsewhere")
    (source / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    refused(source, tmp_path / "target", "leads out of the folder")


def test_links_into_the_blobs_of_a_hub_cache_are_followed(llama, tmp_path):
    source, _ = llama
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    convert(snapshot, tmp_path / "target", **QUIET)
    assert (tmp_path / "target" / "model.safetensors").is_file()


def test_target_must_be_free(llama, tmp_path):
    source, _ = llama
    target = tmp_path / "target"
    target.mkdir()
    convert(source, target, **QUIET)
    before = {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()}
    refused(source, target, "exists and is not empty")
    assert {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()} == before
    (target / "LICENSE.old").write_text("old")
    convert(source, target, overwrite=True, **QUIET)
    assert not (target / "LICENSE.old").exists() and beside(target) == ["target"]
    # A failing run that may overwrite leaves the old target as it was.
    break_shape(source)
    refused(source, target, "wrong shape", overwrite=True)
    assert (target / "model.safetensors").is_file()


def test_overwrite_spares_what_is_no_model_folder(llama, tmp_path):
    target = tmp_path / "precious"
    target.mkdir()
    (target / "thesis.txt").write_text("years")
    refused(llama[0], target, "not a model folder", overwrite=True)
    (tmp_path / "file").write_text("")
    refused(llama[0], tmp_path / "file", "not a folder")


@pytest.mark.parametrize("target", ["source", "source/inner", "."])
def test_source_and_target_must_be_apart(target, llama, tmp_path):
    with pytest.raises(ConversionError, match="two folders"):
        convert(llama[0], tmp_path / target, overwrite=True, **QUIET)
    assert AutoModelForCausalLM.from_pretrained(llama[0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"to": "nothing"}, "'nothing' is not known"),
        ({"dtype": "int8"}, "dtype='int8' is not a floating dtype"),
        ({"dtype": "half past ten"}, "is not a floating dtype"),
        ({"max_shard_size": "five"}, "max_shard_size='five' is not a size"),
        ({"max_shard_size": 0}, "max_shard_size=0 is not a size"),
    ],
)
def test_wrong_options(options, match, llama, tmp_path):
    refused(llama[0], tmp_path / "target", match, **options)


def test_unknown_source(tmp_path):
    refused(tmp_path / "nowhere", tmp_path / "target", "neither a folder nor a Hub id")
    refused("nobody/nothing", tmp_path / "target", "the Hub cannot be asked")


# -- what only the source knows ------------------------------------------------------------------------------------


def round_trip(source, tmp_path, to="llama", **options):
    convert(source, tmp_path / "zoo", **QUIET, **options)
    convert(tmp_path / "zoo", tmp_path / "back", to=to, **QUIET)
    return tmp_path / "zoo", tmp_path / "back"


def test_a_tied_head_that_is_stored_comes_back_stored(llama, tmp_path):
    source, theirs = llama
    rewrite(source, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    zoo, back = round_trip(source, tmp_path)
    assert "lm_head.weight" not in tensors_of(zoo)
    assert_same_tensors(tensors_of(back), tensors_of(source))
    assert_same_config(back, source)
    assert_same_logits(load(source), theirs)


def test_a_head_that_differs_although_the_config_ties_it_is_a_head_of_its_own(llama, tmp_path):
    source, _ = llama
    rewrite(source, lambda t: t.update({"lm_head.weight": torch.randn(101, 48)}))
    theirs = AutoModelForCausalLM.from_pretrained(source)
    zoo, back = round_trip(source, tmp_path)
    assert_same_logits(ZooForCausalLM.from_pretrained(zoo), theirs)
    assert_same_logits(load(source), theirs)
    assert_same_tensors(tensors_of(back), tensors_of(source))
    assert_same_config(back, source)


def test_old_buffers_come_back(llama, tmp_path):
    source, theirs = llama
    name = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    rewrite(source, lambda t: t.update({name.format(i): torch.randn(6) for i in range(3)}))
    zoo, back = round_trip(source, tmp_path)
    assert_same_logits(ZooForCausalLM.from_pretrained(zoo), theirs)
    assert_same_tensors(tensors_of(back), tensors_of(source))


def test_a_body_without_its_prefix_comes_back_without_it(llama, tmp_path):
    source, theirs = llama

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    rewrite(source, strip)
    zoo, back = round_trip(source, tmp_path)
    assert_same_logits(ZooForCausalLM.from_pretrained(zoo), theirs)
    assert_same_tensors(tensors_of(back), tensors_of(source))


def test_mixed_dtypes_are_kept_tensor_by_tensor(llama, tmp_path):
    source, _ = llama

    def mix(tensors):
        for index, name in enumerate(sorted(tensors)):
            tensors[name] = tensors[name].to([torch.float32, torch.bfloat16, torch.float16][index % 3])
        # An odd number of narrow elements before wide ones: offsets must stay aligned.
        assert tensors["model.embed_tokens.weight"].numel() % 4 == 0

    rewrite(source, mix)
    zoo, back = round_trip(source, tmp_path)
    assert len({tensor.dtype for tensor in tensors_of(zoo).values()}) == 3
    assert_same_tensors(tensors_of(back), tensors_of(source))


def test_companions_travel_and_code_does_not(llama, tmp_path):
    source, _ = llama
    texts = {
        "tokenizer.json": "{}", "tokenizer_config.json": "{}", "chat_template.jinja": "{{ x }}", "LICENSE": "free",
        "README.md": "theirs", "modeling_evil.py": "1/0", "pytorch_model.bin": "pickle",
        "additional_chat_templates/tool.jinja": "t", "generation_config.json": '{"eos_token_id": 7}',
    }  # fmt: skip
    for name, text in texts.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    zoo, back = round_trip(source, tmp_path)
    for name in set(texts) - {"README.md", "modeling_evil.py", "pytorch_model.bin"}:
        assert (zoo / name).read_text() == (back / name).read_text() == texts[name]
    assert (back / "README.md").read_text() == "theirs" == (zoo / "source" / "README.md").read_text()
    card = (zoo / "README.md").read_text()
    for fact in ("llama", "| `hidden_size` | `48` |", "| `tie_word_embeddings` | `True` |", "bit for bit", "`LICENSE`"):
        assert fact in card
    for folder in (zoo, back):
        assert not (folder / "modeling_evil.py").exists() and not (folder / "pytorch_model.bin").exists()
    assert ZooForCausalLM.from_pretrained(zoo).generation_config.eos_token_id == 7
    assert load(source).generation_config.eos_token_id == 7


def assert_same_logits(ours, theirs):
    inputs = batch(101)
    with torch.no_grad():
        expected, found = theirs(**inputs).logits[1], ours(**inputs).logits[1]
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


# -- configs -------------------------------------------------------------------------------------------------------


def test_a_changed_field_goes_back_under_the_spelling_the_file_uses(llama):
    source, _ = llama
    raw = json.loads((source / "config.json").read_text())
    raw.pop("rope_parameters")
    raw |= {"rope_theta": 5e4, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": raw.pop("dtype")}
    edit_json(source / "config.json")
    (source / "config.json").write_text(json.dumps(raw))
    config = load(source).config
    assert export_config(config, "llama") == raw
    config.norm_eps, config.rope_parameters = 1e-3, {"rope_type": "default", "rope_theta": 7e3}
    changed = export_config(config, "llama")
    assert changed["rms_norm_eps"] == 1e-3 and changed["rope_parameters"] == config.rope_parameters
    assert not {"rope_theta", "rope_scaling"} & set(changed)
    assert changed["torch_dtype"] == raw["torch_dtype"]


def test_what_a_family_cannot_express_is_named(llama, tmp_path):
    _, _ = llama
    source, _ = save_llama(tmp_path / "biased", mlp_bias=True, attention_bias=True)
    convert(source, tmp_path / "zoo", **QUIET)
    refused(
        tmp_path / "zoo", tmp_path / "out", "mistral cannot express .*attention_bias=True .*mlp_bias=True", to="mistral"
    )


def test_layers_that_differ_are_no_llama():
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "head_dim": 12}
    config = ZooConfig(**sizes, intermediate_size=80, per_layer_config={1: {"intermediate_size": 40}})
    with pytest.raises(ConversionError, match="llama cannot express per_layer_config"):
        export_config(config, "llama")


def test_from_one_family_to_another(llama, tmp_path):
    source, theirs = llama
    convert(source, tmp_path / "out", to="mistral", **QUIET)
    out = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(out).__name__ == "MistralForCausalLM"
    assert_same_logits(out, theirs)
    assert not list((tmp_path / "out").glob("*.py")) and not (tmp_path / "out" / "source").exists()
    convert(source, tmp_path / "zoo", **QUIET)
    refused(tmp_path / "zoo", tmp_path / "again", "is a zoo folder already")


# -- dtype and shards ----------------------------------------------------------------------------------------------


def test_cast(llama, tmp_path):
    source, _ = llama
    convert(source, tmp_path / "zoo", dtype="bfloat16", **QUIET)
    original = tensors_of(source)
    found = tensors_of(tmp_path / "zoo")
    assert torch.equal(found["model.norm.weight"], original["model.norm.weight"].bfloat16())
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert "cast to bfloat16" in (tmp_path / "zoo" / "README.md").read_text()
    model = ZooForCausalLM.from_pretrained(tmp_path / "zoo")
    assert model.dtype == torch.bfloat16 == load(source, dtype="bfloat16").dtype
    convert(tmp_path / "zoo", tmp_path / "back", to="llama", dtype=torch.float16, **QUIET)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "back").dtype == torch.float16


def test_shards_keep_the_limit_and_the_index_lists_all(llama, tmp_path):
    convert(llama[0], tmp_path / "zoo", max_shard_size="40KB", **QUIET)
    index = json.loads((tmp_path / "zoo" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "zoo").glob("model-*.safetensors"))
    assert len(files) > 3 and {path.name for path in files} == set(index["weight_map"].values())
    tensors = tensors_of(tmp_path / "zoo")
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    for path in files:
        assert sum(t.numel() * t.element_size() for t in load_file(path).values()) <= 40_000


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_writer_stores_every_dtype_at_an_aligned_place(dtype, tmp_path):
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8), "wide": torch.rand(5, 3).to(dtype), "empty": torch.empty(0, 4),
        "scalar": torch.tensor(2.5), "strided": torch.rand(4, 6).t(),
    }  # fmt: skip
    writer = ShardWriter(tmp_path, {name: tensor.to("meta") for name, tensor in tensors.items()}, 10**9)
    for name in sorted(tensors, reverse=True):
        writer.write(name, tensors[name])
    writer.finish()
    found = load_file(tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(bits(found[name]), bits(tensor))
        assert checkpoint.headers[name].shape == tensor.shape and checkpoint.read(name).dtype == tensor.dtype


def test_writer_takes_each_tensor_once(tmp_path):
    writer = ShardWriter(tmp_path, {"a": torch.empty(2, device="meta"), "b": torch.empty(2, device="meta")}, 10**9)
    writer.write("a", torch.zeros(2))
    with pytest.raises(ConversionError, match="'a' was produced twice"):
        writer.write("a", torch.zeros(2))
    with pytest.raises(ConversionError, match="'b' came out as float16"):
        writer.write("b", torch.zeros(2).half())
    with pytest.raises(ConversionError, match="never produced, first 'b'"):
        writer.finish()


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("2 MiB", 2**21), ("300", 300), (7, 7)])
def test_sizes_of_shards(text, size):
    assert parse_size(text) == size


@pytest.mark.long
def test_a_model_of_another_kind_is_refused_in_words_by_every_family(llama):
    config, refusals = import_config(json.loads((llama[0] / "config.json").read_text())), 0
    for family in known_families():
        try:
            export_config(config, family)
        except ConversionError as error:
            refusals += 1
            assert str(error).startswith(f"{family} cannot express ")
            assert not re.search("NoneType|operand|object has no|: '[a-z_]+'[.]$", str(error)), error
    assert refusals > 50


# -- all or nothing ------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing(llama, tmp_path, monkeypatch):
    def full(self, *place):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "copy", full)
    refused(llama[0], tmp_path / "target", "the disk is full")


def forked(target, *arguments):
    """A child process that has everything imported already."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def convert_with_small_files(source, target, log):
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    with open(log, "w") as file, contextlib.redirect_stderr(file):
        code = main([str(source), str(target)])
    os._exit(code)


def test_a_write_the_system_refuses_leaves_nothing(llama, tmp_path):
    log = tmp_path / "source" / "log"
    process = forked(convert_with_small_files, llama[0], tmp_path / "target", log)
    process.join(60)
    assert process.exitcode == 1 and "python -m conversion: cannot write" in log.read_text()
    assert beside(tmp_path / "target") == []


def convert_and_stop(source, target, flag, module, name):
    def stop(*arguments, **options):
        flag.touch()
        time.sleep(600)

    setattr(import_module(f"conversion.{module}"), name, stop)
    convert(source, target, overwrite=True, progress=False)


@pytest.mark.parametrize(
    ("module", "name"),
    [("engine.transfer", "Mover"), ("engine.transfer", "copy_companions"), ("files.workspace", "_replace")],
)
def test_killed_at_any_moment_the_target_is_absent_or_complete(module, name, llama, tmp_path):
    source, target = llama[0], tmp_path / "target"
    flag = source / "flag"
    process = forked(convert_and_stop, source, target, flag, module, name)
    while not flag.exists():
        assert process.is_alive()
        time.sleep(0.02)
    (running,) = beside(target)
    # Another run for the same target says so, and leaves the folder of one in progress alone.
    with pytest.raises(ConversionError, match="written by another run"), new_folder(target):
        pass
    assert beside(target) == [running]
    process.kill()
    process.join()
    assert beside(target) == [running]
    convert(source, target, **QUIET)
    assert beside(target) == ["target"]
    expected = load(source).state_dict()
    assert_same_tensors(tensors_of(target), {name: expected[name] for name in expected if name != "lm_head.weight"})


def test_killed_between_two_moves_the_old_target_comes_back(llama, tmp_path):
    source, target = llama[0], tmp_path / "target"
    convert(source, target, **QUIET)
    (tmp_path / ".target.zoo-work").mkdir()
    target.rename(tmp_path / ".target.zoo-work" / "old")
    break_shape(source)
    with pytest.raises(ConversionError, match="wrong shape"):
        convert(source, target, overwrite=True, **QUIET)
    assert (target / "model.safetensors").is_file() and beside(target) == ["target"]


# -- the command ---------------------------------------------------------------------------------------------------


def test_command_there_and_back(llama, tmp_path, capsys):
    source, _ = llama
    assert main([str(source), str(tmp_path / "zoo")]) == 0
    assert main([str(tmp_path / "zoo"), str(tmp_path / "back"), "--to", "llama"]) == 0
    assert "llama" in capsys.readouterr().out
    assert_same_tensors(tensors_of(tmp_path / "back"), tensors_of(source))


@pytest.mark.long
def test_command_runs_from_the_repository_root(llama, tmp_path):
    arguments = [sys.executable, "-m", "conversion", str(llama[0]), str(tmp_path / "zoo")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout and (tmp_path / "zoo" / "config.json").is_file()
