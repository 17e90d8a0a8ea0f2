"""What a decoded token costs on a device, counted on one that is not there: launches of kernels, waits of the host."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from versions import older_than

SUPPORT = Path(__file__).parents[1] / "support"
# One layer of published shapes with embedding, norm and head (the hybrid four layers), batch 1, no mask:
# transformers' own models start 61, 73, 86, 115, 156 and 448 kernels.
LAUNCHES = {"gqa": 42, "sliding": 42, "moe": 56, "mla": 72, "dsa": 114, "gdn": 346}
# One layer of a tiny model; grouped queries start 42.
OTHERS = {
    "differential": 58, "forgetting": 58, "stick_breaking": 67, "path": 110, "value_residual": 42, "tensor_product": 54,
    "grouped_tied": 44, "multi_matrix_factorization": 45, "indexed blocks": 108, "compressed sparse": 139,
    "heavily compressed": 86, "gated_delta_product": 87, "kimi_delta_attention": 75, "mamba2": 62, "mamba": 62,
    "gated_linear_attention": 57, "lightning_attention": 53,
}  # fmt: skip
NAMES = [*LAUNCHES, "sinks", "softcap", "chunked"]
CASES = [f"{name}|{kind}" for name in NAMES for kind in ("dynamic", "static")]
CASES += [f"{name}|dynamic" for name in OTHERS]
CASES += [f"{name}|static" for name in ("forgetting", "path", "tensor_product", "indexed blocks", "mamba2")]


@pytest.fixture(scope="module")
def steps():
    """{case: {"launches", "waits"}}, counted in one process."""
    command = [sys.executable, SUPPORT / "fake_cuda.py", *CASES, "gqa|dynamic|mask", "gdn|dynamic|mask"]
    paths = [str(SUPPORT), str(SUPPORT.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_of_a_token(steps, name):
    if name in ("moe", "mla", "gdn") and older_than("5.23"):
        pytest.skip("experts are transformers' own, and were more kernels")
    assert steps[f"{name}|dynamic"]["launches"] <= LAUNCHES[name]


@pytest.mark.parametrize("name", OTHERS)
def test_launches_of_a_token_of_other_mixers(steps, name):
    assert steps[f"{name}|dynamic"]["launches"] <= OTHERS[name]


@pytest.mark.parametrize("case", CASES)
def test_no_token_waits_for_the_host_or_the_device(steps, case):
    assert steps[case]["waits"] == []


def test_padding_is_looked_at_once_for_all_recurrent_layers(steps):
    assert len([wait for wait in steps["gdn|dynamic|mask"]["prompt"] if "is_left_padded" in wait]) == 1


def test_a_wait_is_seen(steps):
    """A prompt looks once whether a padding mask hides anything."""
    assert steps["gqa|dynamic|mask"]["prompt"]
