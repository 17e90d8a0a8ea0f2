"""Which of a folder's files are its weights, and what makes them none: two sets, packed numbers, files out of reach."""

import json
import multiprocessing
import os
import shutil

import pytest
import torch
from checkpoint_checks import assert_same_tensors, tensors_of
from safetensors.torch import load_file
from test_conversion_engine import QUIET, edit_json, refused, rewrite, save_llama
from transformers import AutoModelForCausalLM

from conversion import ConversionError, convert, load
from modeling_zoo import ZooForCausalLM

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL = "30KB"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Two llamas with different weights: their folders."""
    folder = tmp_path_factory.mktemp("originals")
    return [save_llama(folder / name)[0] for name in ("old", "new")]


@pytest.fixture
def source(originals, tmp_path):
    return shutil.copytree(originals[1], tmp_path / "source")


def add_shards(folder, of):
    """The weights of another folder beside these, in shards with their index."""
    AutoModelForCausalLM.from_pretrained(of).save_pretrained(folder.parent / "sharded", max_shard_size=SMALL)
    for path in (folder.parent / "sharded").glob("model*"):
        shutil.copyfile(path, folder / path.name)
    shutil.rmtree(folder.parent / "sharded")


# -- two sets -------------------------------------------------------------------------------------------------------


def test_two_sets_that_differ_are_both_named(originals, source, tmp_path):
    add_shards(source, of=originals[0])
    refused(source, tmp_path / "target", f"two sets of weights that differ, '{WHOLE}' .* shards of '{INDEX}'")
    with pytest.raises(ConversionError, match="two sets of weights"):
        load(source)


def test_of_two_sets_one_is_read_where_that_makes_no_difference(source, tmp_path):
    add_shards(source, of=source)
    convert(source, tmp_path / "same", **QUIET)
    for shard in source.glob("model-*"):
        shard.unlink()
    # What is left of the other set is its index: transformers ignores it too.
    convert(source, tmp_path / "stale", **QUIET)
    expected = tensors_of(source)
    theirs = AutoModelForCausalLM.from_pretrained(source).state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in expected.items())
    for target in ("same", "stale"):
        convert(tmp_path / target, tmp_path / f"{target}-back", to="llama", **QUIET)
        assert_same_tensors(tensors_of(tmp_path / f"{target}-back"), expected)


def test_config_may_name_the_file(originals, source, tmp_path):
    shutil.copyfile(originals[0] / WHOLE, source / "chosen.safetensors")
    edit_json(source / "config.json", transformers_weights="chosen.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(source).state_dict()
    ours = load(source).state_dict()
    assert torch.equal(ours["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"])
    assert torch.equal(theirs["model.norm.weight"], load_file(originals[0] / WHOLE)["model.norm.weight"])
    convert(source, tmp_path / "zoo", **QUIET)
    convert(tmp_path / "zoo", tmp_path / "back", to="llama", **QUIET)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    assert torch.equal(back["model.norm.weight"], theirs["model.norm.weight"])
    edit_json(source / "config.json", transformers_weights="../old/model.safetensors")
    refused(source, tmp_path / "target", "leads out of the folder")


@pytest.mark.parametrize("sizes", [(SMALL, "5GB"), ("5GB", SMALL), (SMALL, "60KB")], ids=" then ".join)
def test_a_folder_saved_again_holds_what_was_saved_last(sizes, source, tmp_path):
    convert(source, tmp_path / "zoo", max_shard_size=sizes[0], **QUIET)
    model = ZooForCausalLM.from_pretrained(tmp_path / "zoo")
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    model.save_pretrained(tmp_path / "zoo", max_shard_size=sizes[1])
    sharded = sizes[1] != "5GB"
    assert (tmp_path / "zoo" / WHOLE).exists() != sharded == (tmp_path / "zoo" / INDEX).exists()
    listed = json.loads((tmp_path / "zoo" / INDEX).read_text())["weight_map"].values() if sharded else [WHOLE]
    assert {path.name for path in (tmp_path / "zoo").glob("model*.safetensors")} == set(listed)
    again = ZooForCausalLM.from_pretrained(tmp_path / "zoo")
    assert torch.equal(again.model.norm.weight, model.model.norm.weight)
    convert(tmp_path / "zoo", tmp_path / "back", to="llama", **QUIET)
    assert torch.equal(tensors_of(tmp_path / "back")["model.norm.weight"], model.model.norm.weight)


# -- packed numbers -------------------------------------------------------------------------------------------------


def projections(tensors, change):
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors |= change(name, tensors[name])


def float8(name, tensor):
    return {name: tensor.to(torch.float8_e4m3fn)}


def float8_with_scales(name, tensor):
    return float8(name, tensor) | {f"{name}_scale_inv": torch.ones(1, 1)}


def int8(name, tensor):
    return {name: (tensor * 30).round().to(torch.int8)}


def four_bits(name, tensor):
    return {name: torch.zeros(tensor.shape[0], tensor.shape[1] // 2, dtype=torch.uint8)}


@pytest.mark.parametrize("pack", [float8, float8_with_scales, int8, four_bits])
def test_packed_weights_are_called_quantised_whoever_forgot_to_say_so(pack, source, tmp_path):
    rewrite(source, lambda tensors: projections(tensors, pack))
    refused(source, tmp_path / "target", r"quantised.*layers.0.*\.weight' is (float8|int8|uint8).*dequantise")


def test_other_names_of_packed_weights(source, tmp_path):
    def rename(tensors):
        projections(tensors, int8)
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            tensors[name.replace("weight", "qweight")] = tensors.pop(name).int()

    rewrite(source, rename)
    refused(source, tmp_path / "target", r"quantised.*qweight' is int32")


def test_a_zoo_folder_of_integers_is_refused(source, tmp_path):
    convert(source, tmp_path / "zoo", **QUIET)
    rewrite(tmp_path / "zoo", lambda tensors: projections(tensors, int8))
    refused(tmp_path / "zoo", tmp_path / "back", "quantised.*is int8", to="llama")


def test_a_zoo_folder_that_another_library_packed_is_called_quantised(source, tmp_path):
    convert(source, tmp_path / "zoo", **QUIET)
    edit_json(tmp_path / "zoo" / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    refused(tmp_path / "zoo", tmp_path / "back", r"quantised \(bitsandbytes\)", to="llama")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("hf_quant_config.json", {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}),
        ("quantize_config.json", {"bits": 4, "quant_method": "gptq"}),
        ("config.json", {"text_config": {"quantization_config": {"quant_method": "fp8"}}}),
        ("config.json", {"compression_config": {"quant_method": "compressed-tensors"}}),
    ],
)
def test_a_scheme_is_found_wherever_it_is_named(file, content, source, tmp_path):
    (source / file).touch()
    text = (source / file).read_text() or "{}"
    (source / file).write_text(json.dumps(json.loads(text) | content))
    refused(source, tmp_path / "target", r"quantised \((modelopt|gptq|fp8|compressed-tensors)\)")


# -- out of reach ---------------------------------------------------------------------------------------------------


def ask(question, answer):
    os.setuid(65534)
    try:
        question()
    except ConversionError as error:
        answer.put(str(error))


def test_a_file_one_may_not_read_is_called_unreadable(source):
    """Asked by a user whom file modes hold back."""
    (source / WHOLE).chmod(0)
    for folder in (source, *(parent for parent in source.parents if "pytest" in str(parent))):
        folder.chmod(0o755)
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    process = context.Process(target=ask, args=(lambda: load(source), answer))
    process.start()
    text = answer.get(timeout=60)
    process.join()
    assert "model.safetensors is unreadable (Permission denied)" in text and "damaged" not in text


def make_pipe(path):
    os.mkfifo(path)


def make_folder(path):
    path.mkdir()


def make_dangling_link(path):
    path.symlink_to("nowhere")


@pytest.mark.parametrize("name", [WHOLE, INDEX])
@pytest.mark.parametrize("make", [make_pipe, make_folder, make_dangling_link])
def test_what_is_no_file_is_refused_at_once(make, name, source, tmp_path):
    (source / WHOLE).rename(source / "kept")
    make(source / name)
    refused(source, tmp_path / "target", f"{name} is no file")


def test_a_truncated_file_is_named_and_something_can_be_done(source, tmp_path):
    path = source / WHOLE
    path.write_bytes(path.read_bytes()[:-100])
    refused(source, tmp_path / "target", r"model.safetensors is cut off or damaged \(.*[^.]\): download or copy it")


# -- counts in a sentence -------------------------------------------------------------------------------------------


def test_one_and_many_read_as_english(source, tmp_path):
    def gone(count):
        names = sorted(name for name in tensors_of(source) if "mlp" in name)
        rewrite(source, lambda tensors: [tensors.pop(name) for name in names[:count]])

    def added(count):
        rewrite(source, lambda tensors: tensors.update({f"extra.{i}": torch.zeros(2) for i in range(count)}))

    added(1)
    refused(source, tmp_path / "target", r"the checkpoint holds 1 tensor that a model .* does not have: 'extra.0'\.")
    added(3)
    refused(source, tmp_path / "target", r"the checkpoint holds 3 tensors that a model .* does not have: 'extra.0', ")
    gone(1)
    refused(source, tmp_path / "target", r"^1 tensor is missing from the checkpoint: ")
    gone(2)
    refused(source, tmp_path / "target", r"^3 tensors are missing from the checkpoint: ")


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", torch.float8_e5m2, torch.int8])
def test_a_dtype_no_model_computes_in_is_refused_before_anything_is_read(dtype, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text('{"model_type": "llama"}')
    refused(tmp_path / "source", tmp_path / "target", "is not a floating dtype.*bfloat16", dtype=dtype)
    with pytest.raises(ConversionError, match="is not a floating dtype"):
        load(tmp_path / "source", dtype=dtype)


# -- names of wrappers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: name.replace("layers.1.", "layers.1._orig_mod._checkpoint_wrapped_module."),
    ],
    ids=["compiled", "DDP", "both", "PEFT", "compiled layers"],
)
def test_names_of_training_wrappers_are_taken_off(wrap, source, tmp_path):
    expected = tensors_of(source)

    def rename(tensors):
        for name in list(tensors):
            tensors[wrap(name)] = tensors.pop(name)

    rewrite(source, rename)
    convert(source, tmp_path / "zoo", **QUIET)
    convert(tmp_path / "zoo", tmp_path / "back", to="llama", **QUIET)
    assert_same_tensors(tensors_of(tmp_path / "back"), expected)


def test_a_tensor_with_and_without_its_wrapper_is_named(source, tmp_path):
    rewrite(
        source, lambda tensors: tensors.update({"_orig_mod.model.norm.weight": tensors["model.norm.weight"].clone()})
    )
    refused(source, tmp_path / "target", r"model.norm.weight' and .*model.norm.weight' are both 'model.norm.weight'")
