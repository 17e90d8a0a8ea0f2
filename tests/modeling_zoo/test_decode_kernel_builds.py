"""The kernels for a decoded token compiled for Hopper without one: nothing spills, wide tiles use its matrix units."""

import re
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("triton is there for Linux alone", allow_module_level=True)

from aot import HOPPER_SHARED_MEMORY, compiled, report
from torch import bfloat16, device, float32

from modeling_zoo import ops_attention_triton as kernels
from modeling_zoo import ops_attention_triton_indexer as indexer

POINTERS = {"positions": "*i32", "visible": "*u8", "bounds": "*i32", "mixed": "*fp32", "logs": "*fp32", "scale": "fp32"}
STRIDES = tuple(f"{part}_{axis}" for part in "kv" for axis in ("batch", "head", "token")) + (
    "q_batch",
    "q_head",
    "q_row",
)


def build(groups, width, value, shared=False, gathered=False, masked=False, dtype=bfloat16, q_row=None):
    """`_read_split` as `launch` would run it."""
    widths = kernels.tile_widths(width, value, shared)
    tile = dict(kernels.tile_shape(dtype.itemsize, groups, width, value, shared, device("cpu")))
    options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
    flags = {"SHARED": shared, "GATHERED": gathered, "MASKED": masked}
    name = "*bf16" if dtype == bfloat16 else "*fp32"
    types = POINTERS | dict.fromkeys(("query", "key", "value"), name)
    return compiled(kernels._read_split, types, widths | tile | flags, STRIDES, **options)


CASES = {
    "latent, 16 heads": ((16, 576, 512, True), "HMMA"),
    "latent, 16 heads, masked": ((16, 576, 512, True, False, True), "HMMA"),
    "sparse, 16 heads": ((16, 576, 512, True, True, True), "HMMA"),
    "latent in float32": ((128, 576, 512, True, False, False, float32), "FFMA"),
    "grouped, 128 wide": ((4, 128, 128), "HMMA"),
    "grouped, 128 wide, masked": ((4, 128, 128, False, False, True), "HMMA"),
    "grouped, 80 wide": ((1, 80, 80), "HMMA"),
    "grouped, 256 wide, masked": ((8, 256, 256, False, False, True), "HMMA"),
    "grouped, 71 queries": ((71, 64, 64), "HGMMA"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_fits_a_multiprocessor(case, tmp_path):
    arguments, instruction = CASES[case]
    found = report(build(*arguments), tmp_path)
    assert found["stack"] == 0
    assert found["shared"] <= HOPPER_SHARED_MEMORY
    assert found.get(instruction, 0) >= 8
    # Tiles are on their way while others are multiplied.
    assert instruction == "FFMA" or found.get("LDGSTS", 0) > 10


def build_hopper(gathered, masked, width=576, value=512):
    """`_read_latents` as `launch` would run it."""
    tile = dict(kernels.HopperKernel.tile)
    warps = tile.pop("num_warps")
    constants = tile | {"FIRST": value, "REST": width - value, "GATHERED": gathered, "MASKED": masked}
    types = POINTERS | dict.fromkeys(("query", "key"), "*bf16")
    return compiled(kernels.HopperKernel.function, types, constants, STRIDES, num_warps=warps)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("widths", [(576, 512), (288, 256)])
@pytest.mark.parametrize(("gathered", "masked"), [(False, False), (False, True), (True, True)])
def test_the_kernel_for_hopper_fits_it(gathered, masked, widths, tmp_path):
    found = report(build_hopper(gathered, masked, *widths), tmp_path)
    assert found["stack"] == 0
    assert found["shared"] <= HOPPER_SHARED_MEMORY
    # One instruction for 16 channels of the keys and one for 16 of the keys: no warpgroup does the work of the other.
    assert found["HGMMA"] == widths[0] // 16 + 64 // 16
    # They wait for one another at the two ends of each product, not after every instruction.
    assert found["WARPGROUP"] < 10
    assert found["LDGSTS"] > 10


@pytest.mark.parametrize("queries", [1, 2])
def test_the_kernel_of_the_indexer_fits_every_device(queries, tmp_path):
    """A tile of it fits the 99 KB of the smallest devices."""
    tile = {"WIDTH": 128, "CHANNELS": 128, "HEADS": 64, "QUERIES": queries, "KEYS": indexer.INDEX_KEYS}
    types = {"query": "*bf16", "key": "*bf16", "weights": "*fp32", "scores": "*fp32"}
    strides = ("q_batch", "q_token", "q_head", "k_batch", "k_token")
    found = report(compiled(indexer._score_keys, types, tile, strides, num_warps=4 * queries), tmp_path)
    assert found["stack"] == 0
    assert found["shared"] <= 99 * 1024
    assert found["HGMMA"] >= 8 and found["LDGSTS"] >= 8


def test_offsets_of_a_large_cache_are_of_64_bits():
    """A batch of 64 sequences of 128k latents has more numbers than an integer of 32 bits counts."""
    text = build(128, 576, 512, shared=True, gathered=True, masked=True).asm["ttir"]
    narrow = re.findall(r"arith\.muli .*%[kvqpm]_(?:batch|head|token|row)\b.*: i32", text)
    assert "%k_batch" in text
    assert narrow == []
