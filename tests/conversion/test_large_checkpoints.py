"""Checkpoints of 100 GB, holes but for some rows: a conversion of them, in and out, takes less than 2 GB of memory."""

import json
import os
import subprocess
from math import ceil

import pytest
import torch
from places import ROOT
from transformers import AutoConfig

from benchmarks.storage import zoo_command
from conversion.files.checkpoint import Checkpoint
from conversion.files.writer import ShardWriter
from conversion.formats.storage import total_bytes

LIMIT, SHARD = 2 * 10**9, 5 * 10**9
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
BLOCK = 128


def attention(prefix, heads, keys, hidden):
    """Of grouped-query attention, heads of 128."""
    sides = {"q_proj": (heads, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden), "o_proj": (hidden, heads)}
    return {f"{prefix}self_attn.{name}.weight": shape for name, shape in sides.items()}


def mlp(prefix, hidden, inner, names=("gate_proj", "down_proj", "up_proj")):
    shapes = ((inner, hidden), (hidden, inner), (inner, hidden))
    return {f"{prefix}{name}.weight": shape for name, shape in zip(names, shapes, strict=True)}


def norms(prefix, hidden):
    return {f"{prefix}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}


def ends(vocab, hidden):
    return {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }


def llama():
    """Llama 3.1 405B, 15 layers of it."""
    sizes = {"hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128, "num_key_value_heads": 8}
    config = AutoConfig.for_model("llama", vocab_size=128256, num_hidden_layers=15, **sizes)
    shapes = ends(128256, 16384)
    for layer in (f"model.layers.{number}." for number in range(15)):
        shapes |= attention(layer, 16384, 1024, 16384) | mlp(layer + "mlp.", 16384, 53248) | norms(layer, 16384)
    return config, shapes


def mixtral():
    """Mixtral 8x22B, 20 layers of it, published with the experts one by one."""
    sizes = {"hidden_size": 6144, "intermediate_size": 16384, "num_attention_heads": 48, "num_key_value_heads": 8}
    config = AutoConfig.for_model("mixtral", vocab_size=32768, num_hidden_layers=20, **sizes)
    shapes = ends(32768, 6144)
    for layer in (f"model.layers.{number}." for number in range(20)):
        experts = layer + "block_sparse_moe."
        shapes |= attention(layer, 6144, 1024, 6144) | norms(layer, 6144) | {experts + "gate.weight": (8, 6144)}
        for number in range(8):
            shapes |= mlp(f"{experts}experts.{number}.", 6144, 16384, ("w1", "w2", "w3"))
    return config, shapes


def deepseek_v3():
    """DeepSeek-V3, 9 of its layers with experts."""
    config = AutoConfig.for_model("deepseek_v3", num_hidden_layers=9, first_k_dense_replace=0)
    shapes = ends(129280, 7168)
    for layer in (f"model.layers.{number}." for number in range(9)):
        shapes |= norms(layer, 7168) | {
            f"{layer}self_attn.q_a_proj.weight": (1536, 7168),
            f"{layer}self_attn.q_a_layernorm.weight": (1536,),
            f"{layer}self_attn.q_b_proj.weight": (128 * 192, 1536),
            f"{layer}self_attn.kv_a_proj_with_mqa.weight": (576, 7168),
            f"{layer}self_attn.kv_a_layernorm.weight": (512,),
            f"{layer}self_attn.kv_b_proj.weight": (128 * 256, 512),
            f"{layer}self_attn.o_proj.weight": (7168, 128 * 128),
            f"{layer}mlp.gate.weight": (256, 7168),
            f"{layer}mlp.gate.e_score_correction_bias": (256,),
        }
        shapes |= mlp(layer + "mlp.shared_experts.", 7168, 2048)
        for number in range(256):
            shapes |= mlp(f"{layer}mlp.experts.{number}.", 7168, 2048)
    return config, shapes


def headers_of(shapes, fp8):
    """What the files hold, as meta tensors; projections in FP8 have a scale for each block."""
    headers = {}
    for name, shape in shapes.items():
        packed = fp8 and name.endswith("_proj.weight") or "with_mqa" in name
        with torch.device("meta"):
            headers[name] = torch.empty(shape, dtype=torch.float8_e4m3fn if packed else torch.bfloat16)
            if packed:
                headers[name + "_scale_inv"] = torch.empty([ceil(side / BLOCK) for side in shape])
            if name.endswith("correction_bias"):
                headers[name] = torch.empty(shape)
    return headers


def some_rows(name, headers):
    """Whether, and which, rows of a tensor are numbers: of every 29th, and of all that are no expert's."""
    rows = headers[name].shape[0]
    chosen = "experts." not in name or sum(map(ord, name)) % 29 == 0
    return [(0, min(rows, 2)), (max(0, rows - 2), rows)] if chosen else []


def published(folder, config, headers):
    """The folder: files full of holes, in which `some_rows` are random."""
    folder.mkdir()
    config.architectures, config.dtype = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"], "bfloat16"
    config.save_pretrained(folder)
    writer = ShardWriter(folder, headers, SHARD)
    draws = torch.Generator().manual_seed(0)
    for name, header in headers.items():
        for first, last in some_rows(name, headers):
            numbers = torch.randn(last - first, *header.shape[1:], generator=draws).to(header.dtype)
            writer.write_part(name, first * header[0].numel(), numbers)
    writer._place.clear()  # the rest is not to come
    writer.finish()


def converted(*arguments):
    """Runs `zoo convert` in a process of its own -> the most memory it held, bytes."""
    done = subprocess.run(
        zoo_command("convert", *arguments),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


def on_disk(folder):
    """Bytes that the files of a folder take, holes left out."""
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "fp8"), [(llama, False), (mixtral, False), (deepseek_v3, True)], ids=["llama", "mixtral", "deepseek, fp8"]
)
def test_a_conversion_of_100_gb_takes_2_gb_of_memory(make, fp8, tmp_path):
    theirs, zoo, back = (tmp_path / name for name in ("theirs", "zoo", "back"))
    config, shapes = make()
    if fp8:
        config.quantization_config = FP8
    headers = headers_of(shapes, fp8)
    assert total_bytes(headers) > 100 * 10**9
    published(theirs, config, headers)
    if on_disk(theirs) > 10 * 10**9:
        pytest.skip("the file system of the temporary folder keeps no holes")
    held = {"in": converted(theirs, zoo), "out": converted(zoo, back, "--to", config.model_type)}
    print(json.dumps({"model": config.model_type, "GB": total_bytes(headers) / 1e9, "held GB": held}))
    assert max(held.values()) < LIMIT, held
    stored, given = Checkpoint(theirs), Checkpoint(back)
    assert given.headers.keys() == shapes.keys()
    for name in shapes:
        for first, last in some_rows(name, headers):
            expected = stored.read_rows(name, first, last)
            if name + "_scale_inv" in headers:
                row = stored.read_rows(name + "_scale_inv", first // BLOCK, first // BLOCK + 1)
                assert (last - 1) // BLOCK == first // BLOCK
                expected = expected.float() * row.repeat_interleave(BLOCK, dim=1)[:, : shapes[name][1]]
            assert torch.equal(given.read_rows(name, first, last), expected.to(given.headers[name].dtype)), name


def gptq(rows, columns):
    stored = {"qweight": (columns // 8, rows), "qzeros": (columns // 128, rows // 8)}
    headers = {part: torch.empty(shape, dtype=torch.int32, device="meta") for part, shape in stored.items()}
    headers["scales"] = torch.empty(columns // 128, rows, dtype=torch.float16, device="meta")
    return headers, {"g_idx": torch.arange(columns, dtype=torch.int32) // 128}


def awq(rows, columns):
    stored = {"qweight": (columns, rows // 8), "qzeros": (columns // 128, rows // 8)}
    headers = {part: torch.empty(shape, dtype=torch.int32, device="meta") for part, shape in stored.items()}
    return headers | {"scales": torch.empty(columns // 128, rows, dtype=torch.float16, device="meta")}, {}


def nf4(rows, columns):
    headers = {
        "weight": torch.empty(rows * columns // 2, 1, dtype=torch.uint8, device="meta"),
        "weight.absmax": torch.empty(rows * columns // 64, device="meta"),
    }
    said = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, columns]})
    state = torch.tensor(list(said.encode()), dtype=torch.uint8)
    return headers, {"weight.quant_map": torch.zeros(16), "weight.quant_state.bitsandbytes__nf4": state}


def packed(rows, columns):
    headers = {
        "weight_packed": torch.empty(rows, columns // 8, dtype=torch.int32, device="meta"),
        "weight_scale": torch.empty(rows, columns // 128, dtype=torch.bfloat16, device="meta"),
    }
    return headers, {"weight_shape": torch.tensor([rows, columns])}


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}
IN_FOUR_BITS = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}),
    "bitsandbytes": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "compressed-tensors": (
        packed,
        {"quant_method": "compressed-tensors", "config_groups": {"one": {"targets": ["Linear"], "weights": INT4}}},
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", IN_FOUR_BITS)
def test_the_widest_matrices_are_decoded_in_parts(name, tmp_path):
    """A layer of Llama 3.1 405B, whose matrices of 1.7 GB are all zero."""
    pack, scheme = IN_FOUR_BITS[name]
    shapes = attention("model.layers.0.", 16384, 1024, 16384) | norms("model.layers.0.", 16384)
    shapes |= mlp("model.layers.0.mlp.", 16384, 53248) | ends(128, 16384)
    headers, contents = {}, {}
    for tensor, shape in shapes.items():
        module = tensor.removesuffix("weight")
        parts, said = pack(*shape) if "_proj" in tensor else ({"weight": torch.empty(shape, device="meta")}, {})
        headers |= {module + part: header for part, header in parts.items()}
        contents |= {module + part: content for part, content in said.items()}
    sizes = {"hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128, "num_key_value_heads": 8}
    config = AutoConfig.for_model("llama", vocab_size=128, num_hidden_layers=1, quantization_config=scheme, **sizes)
    folder = tmp_path / "theirs"
    folder.mkdir()
    config.save_pretrained(folder)
    written = {part: tensor.to("meta") for part, tensor in contents.items()}
    writer = ShardWriter(folder, headers | written, SHARD)
    for part, tensor in contents.items():
        writer.write(part, tensor)
    writer._place.clear()  # holes
    writer.finish()
    held = converted(folder, tmp_path / "zoo")
    print(json.dumps({"format": name, "held GB": held / 1e9}))
    assert held < LIMIT
