"""`--quantize fp8-block`: DeepSeek's FP8, against a slow reference and transformers' own reading."""

import json

import pytest
import torch
from checkpoint_checks import batch, tensors_of
from packed_checkpoints import packed_checkpoint
from packs import in_blocks
from random_models import build, their_class_config
from safetensors.torch import load_file, save_file
from samples import only
from storage_formats import FP8
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from conversion import ConversionError, convert, family_of, load
from conversion.engine import streaming
from modeling_zoo import ZooConfig, ZooForCausalLM
from zoo.cli.main import app

QUIET = {"progress": False}
FP8_BLOCK = QUIET | {"quantize": "fp8-block"}
WHOLE = {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2}
HEADS = {"head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {"moe_intermediate_size": 128}
LAYER = "model.layers.1."
LATENT = {"q_lora_rank": 128, "kv_lora_rank": 128, "qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "v_head_dim": 64}
FOUR = {"num_attention_heads": 4, "num_key_value_heads": 4}
# family -> (sizes, modules that stay plain beside embedding and head: name in a layer -> the layers that have it)
CASES = {
    "llama": (WHOLE | HEADS, {}),
    "mixtral": (WHOLE | HEADS, {"block_sparse_moe.gate": (0, 1)}),
    "qwen3_moe": (WHOLE | HEADS | EXPERTS, {"mlp.gate": (0, 1)}),
    # kv_a_proj_with_mqa has 192 rows, and q_a_proj is joined with it.
    "deepseek_v3": (
        WHOLE | EXPERTS | LATENT | FOUR,
        {"self_attn.q_a_proj": (0, 1), "self_attn.kv_a_proj_with_mqa": (0, 1), "mlp.gate": (1,)},
    ),
    "phi3": (WHOLE | HEADS, {}),
}


def published(folder, model_type, sizes, dtype=torch.bfloat16):
    """A checkpoint of a family with random weights."""
    family = family_of(model_type)
    config = their_class_config(model_type, family, {**family.tiny[0], **sizes})
    build(config, family).to(dtype).save_pretrained(folder)
    return folder


def scheme_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


@pytest.fixture(autouse=True)
def in_small_parts(monkeypatch):
    """Matrices are rounded a few blocks at a time."""
    monkeypatch.setattr(streaming, "PART", 50_000)


def in_blocks_of_128(matrix):
    """Numbers and scales, one block at a time."""
    rows, columns = (side // 128 for side in matrix.shape)
    numbers, scales = torch.empty(matrix.shape, dtype=torch.float8_e4m3fn), torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            part = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            scales[i, j] = matrix[part].float().abs().max() / 448
            numbers[part] = (matrix[part].float() / scales[i, j]).to(torch.float8_e4m3fn)
    return numbers, scales


@pytest.mark.parametrize("model_type", only(("llama", "deepseek_v3"), CASES))
def test_every_reader_sees_the_same_numbers(model_type, tmp_path):
    sizes, plain = CASES[model_type]
    published(tmp_path / "plain", model_type, sizes)
    convert(tmp_path / "plain", tmp_path / "fp8", **FP8_BLOCK)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "fp8"))
    scheme = scheme_of(tmp_path / "fp8")
    names = {f"model.layers.{layer}.{name}" for name, layers in plain.items() for layer in layers}
    assert scheme.pop("modules_to_not_convert") == sorted({*names, "lm_head", "model.embed_tokens"})
    assert scheme == FP8
    for name, tensor in before.items():
        scale = after.pop(f"{name}_scale_inv", None)
        kept = tensor.dim() < 2 or name.removesuffix(".weight") in (*names, "lm_head", "model.embed_tokens")
        assert (scale is None) == kept, name
        expected = (tensor,) if kept else in_blocks_of_128(tensor)
        for one, other in zip(expected, (after.pop(name), scale), strict=False):
            assert one.dtype == other.dtype and torch.equal(one.float(), other.float()), name
    assert not after
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "fp8", dtype=torch.bfloat16).float().eval()
    ours = load(tmp_path / "fp8").float().eval()
    inputs = batch(ours.config.vocab_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, atol=2e-4, rtol=2e-4)


def test_a_zoo_folder_goes_to_its_family_and_to_another(tmp_path):
    published(tmp_path / "plain", "llama", WHOLE | HEADS)
    convert(tmp_path / "plain", tmp_path / "zoo", **QUIET)
    for target, to in (("own", None), ("named", "mistral")):
        convert(tmp_path / "zoo", tmp_path / target, to, **FP8_BLOCK)
        assert json.loads((tmp_path / target / "config.json").read_text())["model_type"] == (to or "llama")
    straight = convert(tmp_path / "plain", tmp_path / "straight", **FP8_BLOCK)
    assert straight.model_type == "llama"
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("own", "named", "straight")]
    for name, tensor in files[0].items():
        assert all(torch.equal(tensor.view(torch.uint8), other[name].view(torch.uint8)) for other in files[1:]), name


def test_a_tied_head_is_listed_although_no_tensor_has_its_name(tmp_path):
    published(tmp_path / "plain", "llama", WHOLE | HEADS | {"tie_word_embeddings": True})
    convert(tmp_path / "plain", tmp_path / "fp8", **FP8_BLOCK)
    assert "lm_head.weight" not in tensors_of(tmp_path / "fp8")
    assert "lm_head" in scheme_of(tmp_path / "fp8")["modules_to_not_convert"]


def test_a_torn_projection_stays_plain_whole(tmp_path):
    """vLLM joins q, k and v; 64 rows of k and v are no whole block."""
    published(tmp_path / "plain", "llama", WHOLE | HEADS | {"num_key_value_heads": 1})
    convert(tmp_path / "plain", tmp_path / "fp8", **FP8_BLOCK)
    stored = tensors_of(tmp_path / "fp8")
    eights = {name.split(".")[-2] for name, tensor in stored.items() if tensor.dtype == torch.float8_e4m3fn}
    assert eights == {"o_proj", "gate_proj", "up_proj", "down_proj"}
    listed = scheme_of(tmp_path / "fp8")["modules_to_not_convert"]
    assert {f"{LAYER}self_attn.{word}_proj" for word in "qkv"} <= set(listed)


def test_what_dtype_says_is_the_dtype_of_the_rest(tmp_path):
    published(tmp_path / "plain", "llama", WHOLE | HEADS, torch.float32)
    convert(tmp_path / "plain", tmp_path / "fp8", dtype="bfloat16", **FP8_BLOCK)
    assert {t.dtype for n, t in tensors_of(tmp_path / "fp8").items() if "scale" not in n} == {
        torch.float8_e4m3fn, torch.bfloat16,
    }  # fmt: skip


@pytest.mark.long
def test_kept_blocks_go_back_bit_for_bit(tmp_path):
    packed_checkpoint(tmp_path / "packed", "llama", in_blocks(torch.float32), FP8, **WHOLE, **HEADS)
    convert(tmp_path / "packed", tmp_path / "zoo", keep_quantized=True, **QUIET)
    convert(tmp_path / "zoo", tmp_path / "back", **FP8_BLOCK)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("packed", "back"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one)


def test_what_cannot_be_is_refused(tmp_path):
    llama = published(tmp_path / "llama", "llama", WHOLE | HEADS)
    small = published(tmp_path / "small", "llama", {})
    packed_checkpoint(tmp_path / "packed", "llama", in_blocks(torch.float32), FP8, **WHOLE, **HEADS)
    ZooForCausalLM(ZooConfig(**WHOLE, **HEADS, vocab_size=64)).save_pretrained(tmp_path / "born")
    broken = published(tmp_path / "broken", "llama", WHOLE | HEADS)
    tensors = load_file(broken / "model.safetensors")
    tensors[f"{LAYER}mlp.up_proj.weight"][3, 5] = float("inf")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    sentences = {
        (llama, "fp4"): "quantize='fp4' is no scheme that is written here: write fp8-block.",
        (small, "fp8-block"): "nothing of this llama can be stored in fp8-block, .* multiples of 128",
        (tmp_path / "packed", "fp8-block"): r"is quantised already \(fp8 \(e4m3\)\), .* the weights it was made from",
        (tmp_path / "born", "fp8-block"): r"born comes from no family: name the one to write in fp8-block with --to",
        (broken, "fp8-block"): f"'{LAYER}mlp.up_proj.weight' cannot be stored in fp8-block: .* not finite",
    }
    for (source, scheme), sentence in sentences.items():
        with pytest.raises(ConversionError, match=sentence):
            convert(source, tmp_path / "target", quantize=scheme, **QUIET)
        assert not (tmp_path / "target").exists()
    convert(tmp_path / "born", tmp_path / "target", "llama", **FP8_BLOCK)


def test_the_command_line_writes_it(tmp_path):
    published(tmp_path / "plain", "llama", WHOLE | HEADS)
    command = ["convert", str(tmp_path / "plain"), str(tmp_path / "fp8"), "--quantize", "fp8-block"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert scheme_of(tmp_path / "fp8")["quant_method"] == "fp8"
