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
LAUNCHES = {"gqa": 42, "sliding": 42, "moe": 56, "mla": 72, "dsa": 114, "gdn": 350}
NAMES = [*LAUNCHES, "sinks", "softcap", "chunked"]
CASES = [f"{name} {kind}" for name in NAMES for kind in ("dynamic", "static")]


@pytest.fixture(scope="module")
def steps():
    """{case: {"launches", "waits"}}, counted in one process."""
    command = [sys.executable, SUPPORT / "fake_cuda.py", *CASES, "gqa dynamic mask", "gdn dynamic mask"]
    paths = [str(SUPPORT), str(SUPPORT.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_of_a_token(steps, name):
    if name in ("moe", "mla", "gdn") and older_than("5.23"):
        pytest.skip("experts are transformers' own, and were more kernels")
    assert steps[f"{name} dynamic"]["launches"] <= LAUNCHES[name]


@pytest.mark.parametrize("case", CASES)
def test_no_token_waits_for_the_host_or_the_device(steps, case):
    assert steps[case]["waits"] == []


def test_padding_is_looked_at_once_for_all_recurrent_layers(steps):
    assert len([wait for wait in steps["gdn dynamic mask"]["prompt"] if "is_left_padded" in wait]) == 1


def test_a_wait_is_seen(steps):
    """A prompt looks once whether a padding mask hides anything."""
    assert steps["gqa dynamic mask"]["prompt"]
