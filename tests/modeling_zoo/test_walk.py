"""How far a reader walks: the files a plain forward enters, what it asks in vain, the rooms that read a flag."""

import ast
import sys
from collections import Counter, defaultdict
from dataclasses import fields
from pathlib import Path

import torch
from places import ROOT
from transformers import PreTrainedConfig

import modeling_zoo
from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM

PACKAGES = [str(ROOT / name) for name in ("configuration_zoo", "modeling_zoo")]
PLAIN = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4}
MOST_FILES, MOST_NOES, MOST_ROOMS = 12, 5, 4
# What the sizes of a whole model are, every room may ask.
SIZES = {"hidden_size", "num_hidden_layers", "norm_eps", "head_dim"}
# A dict of settings that have a concept each: no key has more than one room.
SETTINGS = {"precision"}


def walk(forward):
    """({file: calls of its functions}, [(file, function) that said False]) of one call."""
    calls, noes = Counter(), []

    def note(frame, event, value):
        path = frame.f_code.co_filename
        if path.startswith(tuple(PACKAGES)):
            if event == "call":
                calls[Path(path).stem] += 1
            elif event == "return" and value is False:
                noes.append((Path(path).stem, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        forward()
    finally:
        sys.setprofile(None)
    return calls, noes


def rooms_by_name(paths):
    """{attribute: the first words of the files that read it}."""
    rooms = defaultdict(set)
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                rooms[node.attr].add(path.stem.partition("_")[0])
    return rooms


@torch.no_grad()
def test_a_plain_forward_enters_few_files_and_asks_little():
    model = ZooForCausalLM(ZooConfig(**PLAIN)).eval()
    tokens = torch.randint(61, (1, 9))
    model(tokens, use_cache=False)
    calls, noes = walk(lambda: model(tokens, use_cache=False))
    assert {"modeling_zoo", "attention", "ops_attention", "mlp_dense"} <= set(calls)
    assert len(calls) <= MOST_FILES, calls
    assert len(noes) <= MOST_NOES, noes


def test_a_question_answered_no_is_counted():
    assert walk(modeling_zoo.ops_dispatch.is_traced) == (Counter(ops_dispatch=1), [("ops_dispatch", "is_traced")])


def test_the_way_of_a_flag_enters_few_rooms():
    """From the config's group of fields on: a platform file that refuses a combination counts too."""
    folder = Path(modeling_zoo.__file__).parent
    rooms = rooms_by_name(path for path in folder.glob("*.py") if not path.stem.startswith(("export", "__")))
    found = {field.name: rooms[field.name] for field in fields(ZooConfig) if field.name not in SIZES | SETTINGS}
    assert found["sliding_window"] and found["kv_lora_rank"]
    own = set(found) - {field.name for field in fields(PreTrainedConfig)}
    assert {name: found[name] for name in own if len(found[name]) > MOST_ROOMS} == {}
