"""Wrong inputs: one sentence each, before anything is written."""

import pytest
import yaml
from surgery_models import STORIES, TEXT

from conversion import ConversionError
from zoo.surgery import Healing, operate
from zoo.surgery.merge_experts import parse_experts
from zoo.surgery.merge_plan import parse_plan
from zoo.surgery.operation import SurgeryError
from zoo.surgery.plan_file import read_plan
from zoo.surgery.planner import parse_layers

FEWER = {"num_key_value_heads": 2}
ONE = {"operations": [{"set": FEWER}]}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"calibrate": ""}, "0 tokens, fewer than one row"),
        ({"heal": TEXT, "healing": Healing(train="head")}, "train='head' is none of"),
        ({"heal": TEXT, "healing": Healing(steps="many")}, "steps='many' is not a whole number"),
        ({"heal": TEXT, "healing": Healing(learning_rate=-1.0)}, "learning_rate=-1.0 must be more than 0"),
        ({"at_most": "twice"}, "at_most='twice' is not a number"),
        ({"seed": True}, "seed=True is not a whole number"),
    ],
)
def test_values_are_refused_before_anything_is_written(tmp_path, options, says):
    if options.get("calibrate") == "":
        (tmp_path / "empty.txt").write_text("")
        options = {"calibrate": tmp_path / "empty.txt"}
    with pytest.raises(SurgeryError, match=says):
        operate(STORIES, tmp_path / "new", FEWER, **{"method": None if "calibrate" in options else "first", **options})
    assert not (tmp_path / "new").exists()


def test_a_target_that_is_there_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    from zoo.surgery import operating

    (tmp_path / "new").mkdir()
    (tmp_path / "new/notes").write_text("x")
    monkeypatch.setattr(operating, "perform", None)
    with pytest.raises(ConversionError, match="exists and is not empty"):
        operate(STORIES, tmp_path / "new", FEWER)
    with pytest.raises(ConversionError, match="two folders"):
        operate(STORIES, STORIES, FEWER, overwrite=True)


@pytest.mark.parametrize(
    ("read", "plan", "says"),
    [
        (read_plan, {"operations": 3}, "operations=3 is not a list"),
        (read_plan, {"operations": [{"set": FEWER, "method": 3}]}, "method=3 is not a word"),
        (read_plan, ONE | {"to": 3}, "to=3 is not a word"),
        (parse_plan, {"merge_method": "linear", "models": 3}, "models=3 is not a list"),
        (parse_plan, {"merge_method": "passthrough", "slices": 3}, "slices=3 is not a list"),
        (parse_plan, {"merge_method": "passthrough", "slices": [{"sources": "a"}]}, "sources='a' is not a list"),
        (parse_plan, {"merge_method": ["linear"], "models": []}, r"merge_method=\['linear'\] is not a word"),
        (parse_experts, {"base_model": "a", "experts": 3}, "experts=3 is not a list"),
        (parse_experts, {"base_model": "a", "experts": [], "experts_per_token": "two"}, "is not a whole number"),
        (
            parse_experts,
            {"base_model": "a", "experts": [{"positive_prompts": "b"}]},
            "positive_prompts='b' is not a list",
        ),
        (parse_layers, "3-1", "names no layer"),
        (parse_layers, [], "names no layer"),
    ],
)
def test_plans_of_another_form_are_refused(read, plan, says):
    with pytest.raises(SurgeryError, match=says):
        read(plan)


@pytest.mark.long
def test_every_wrong_command_is_one_sentence(zoo, tmp_path):
    """No traceback, nothing left behind, the source as it was."""
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(ONE))
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "bad.jsonl").write_text('{"txt": 1}\n')
    (tmp_path / "tiny.txt").write_text("Once upon a time.")
    operate(STORIES, tmp_path / "made", FEWER, method="first")
    before, source = sorted(tmp_path.rglob("*")), {path: path.read_bytes() for path in STORIES.iterdir()}
    new, fewer = tmp_path / "new", ["--set", "num_key_value_heads=2"]
    asked = [
        *(["surgery", STORIES, new, "--set", one] for one in WRONG),
        *(["surgery", STORIES, new, "--set", "layer_types=linear_attention", "--layers", one] for one in LAYERS),
        *(["surgery", STORIES, new, *fewer, *one] for one in OPTIONS),
        *(
            ["surgery", STORIES, new, *fewer, "--calibrate", tmp_path / one]
            for one in ("no.txt", "bad.jsonl", "tiny.txt")
        ),
        *(["surgery", STORIES, new, "--plan", tmp_path / one] for one in ("no.yaml", "list.yaml")),
        ["surgery", STORIES, new, "--plan", tmp_path / "two.yaml", *fewer],
        ["surgery", tmp_path / "no", new, *fewer],
        ["surgery", STORIES, *fewer],
        ["surgery", STORIES, tmp_path / "made", *fewer],
        ["heal", STORIES, "--text", TEXT],
        ["heal", tmp_path / "made"],
        ["heal", tmp_path / "made", "--text", TEXT, "--train", "x"],
        ["heal", tmp_path / "made", "--text", TEXT, "--steps", "0", "--layerwise", "0"],
        ["merge", tmp_path / "no.yaml", new],
        ["merge", tmp_path / "two.yaml", new],
        ["merge", tmp_path / "two.yaml"],
    ]
    for command in asked:
        code, _, error = zoo(*command)
        assert code == 1 and len(error.strip().splitlines()) == 1, (command, error)
        assert "unexpected" not in error and "Traceback" not in error, (command, error)
        assert sorted(tmp_path.rglob("*")) == before, command
    assert {path: path.read_bytes() for path in STORIES.iterdir()} == source


WRONG = (
    "rms_norm_eps=1", "hidden_act=gelu", "num_key_value_heads", "num_key_value_heads=3", "num_key_value_heads=two",
    "num_key_value_heads=-2", "num_key_value_heads=null", "num_key_value_heads=4", "num_attention_heads=7",
    "layer_types=nope", 'layer_types=["full_attention"]', "attention_type=nope", "norm_elementwise_affine=false",
    "num_experts=8", "num_hidden_layers=0", "num_hidden_layers=11", "vocab_size=1", "intermediate_size=0",
    "hidden_size=100", "max_position_embeddings=100", "head_dim=4",
)  # fmt: skip
LAYERS = ("9", "auto:9", "auto:0", "auto:x", "x", "3-1", "")
OPTIONS = (
    ["--method", "nope"], ["--dtype", "float7"], ["--max-shard-size", "big"], ["--to", "nope"], ["--at-most", "2"],
    ["--train", "head", "--heal", TEXT], ["--steps", "-1", "--heal", TEXT], ["--evaluate", "no.txt"],
    ["--apply", "stream_rotation"],
)  # fmt: skip
