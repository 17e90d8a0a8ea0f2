"""What is left out is derived step by step (`ZooConfig._resolve`): what each step reads, and that it is settled.

A config that notes which of its fields are read and changed is made of every row of the combinations.
"""

from collections import defaultdict
from contextlib import suppress
from functools import cache, partial

from combinations import ROWS, SIZES
from huggingface_hub.errors import StrictDataclassError

from configuration_zoo import ZooConfig
from configuration_zoo.field_settings import described, settings_of, spread
from configuration_zoo.vocabulary import RECURRENCES

FIELDS, GROUPS = described(ZooConfig), settings_of(ZooConfig)
# What a config cannot do without.
FEW_SIZES = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
# step -> the fields it reads that steps before it settle. Everything else that it reads is given or has a default.
READS = {
    "layer_types": set(),
    "mlp_layer_types": set(),
    "latent": {"layer_types"},
    "attention": {"head_dim", "layer_types"},
    "factors": {"head_dim", "layer_types"},
    "linear": {"head_dim", "layer_types"},
    "shared_blocks": set(),
    "position": set(),
    "norm": set(),
    "hyper_connections": set(),
    "block": set(),
    "per_layer_input": set(),
    "mlp": set(),
    "experts": {"intermediate_size", "mlp_layer_types"},
    "multi_token": {"layer_types", "mlp_layer_types"},
    "precision": {"mlp_layer_types"},
    "training": set(),
}


class Step:
    """One step of one derivation: the fields it read before it changed them, and those it changed."""

    def __init__(self, name):
        self.name, self.reads, self.writes = name.removeprefix("resolve_"), set(), set()


class Noted(dict):
    """A dict of settings that notes which keys are read."""

    def __init__(self, values, note):
        super().__init__(values)
        self.note = note

    def __getitem__(self, key):
        self.note(key)
        return super().__getitem__(key)


def noting(runs, base=ZooConfig):
    """A class of configs that adds a list of steps to `runs` whenever one of them is derived."""
    running = []

    class NotingConfig(base):
        def _resolve(self):
            runs.append([])
            super()._resolve()

        def __getattribute__(self, name):
            value = super().__getattribute__(name)
            if name.startswith("resolve_"):
                return partial(run, self, name, value)
            if not running:
                return value
            if name in GROUPS:
                return Noted(value, lambda key: running[-1].reads.add(f"{name}.{key}"))
            running[-1].reads.update({name} & FIELDS.keys())
            return value

    def values_of(config):
        return spread({name: value for name, value in vars(config).items() if name in known}, GROUPS)

    def run(config, name, method):
        assert not running, f"{name} runs inside {running[-1].name}"
        before = values_of(config)
        running.append(Step(name))
        try:
            method()
        finally:
            step = running.pop()
        step.writes = {name for name, value in values_of(config).items() if value is not before.get(name)}
        runs[-1].append(step)

    known = {name.partition(".")[0] for name in FIELDS}
    return NotingConfig


def too_early(steps):
    """(step, field, step) for each field that is read by a step and changed by one after it."""
    for index, step in enumerate(steps):
        for later in steps[index + 1 :]:
            yield from ((step.name, field, later.name) for field in step.reads & later.writes)


@cache
def every_run():
    """The steps of every derivation that the configs of the rows run, those of their layers included."""
    rows = [row for room, rows in ROWS.items() if room != "stray" for row in rows]
    rows += [{**row, "per_layer_config": {"1": {"residual_multiplier": 0.5}}} for row in rows[::7]]
    said = ("num_mem_blocks", "vocab_size_per_layer_input")
    rows += [{name: row[name] for name in row if name not in said} for row in rows if {*said} & row.keys()]
    bare = {"layer_types": ["linear_attention"] * 3, "hidden_size": 96}
    rows += [{**bare, "linear_attention_type": name} for name in RECURRENCES]
    runs = []
    config_class = noting(runs)
    for row in rows:
        config_class(**{**SIZES, **row})
        with suppress(StrictDataclassError, ValueError):  # Widths that only divide if they are said.
            config_class(**{**FEW_SIZES, **row})
    return runs


def test_no_step_reads_what_a_later_one_changes():
    assert {found for steps in every_run() for found in too_early(steps)} == set()


def test_no_field_is_settled_twice():
    for steps in every_run():
        writers = defaultdict(list)
        for step in steps:
            for field in step.writes:
                writers[field].append(step.name)
        assert {field: names for field, names in writers.items() if len(names) > 1} == {}


def test_each_step_reads_of_the_steps_before_it_what_is_said_here():
    """In the order in which they run; and each of them settles something in some config."""
    reads, writes = defaultdict(set), defaultdict(set)
    for steps in every_run():
        assert [step.name for step in steps] == list(READS)[: len(steps)]
        settled = set()
        for step in steps:
            reads[step.name] |= step.reads & settled
            writes[step.name] |= step.writes
            settled |= step.writes
    assert {name: reads[name] for name in READS} == READS
    assert [name for name in READS if not writes[name]] == []
    methods = {name for group in ZooConfig.__mro__ for name in vars(group) if name.startswith("resolve_")}
    assert methods == {f"resolve_{name}" for name in READS}


class WrongOrder(ZooConfig):
    """Recurrences before the heads that they take over."""

    def _resolve(self):
        self.resolve_linear()
        super()._resolve()


def test_a_wrong_order_would_be_found():
    row = {"layer_types": ["linear_attention"] * 3, "linear_attention_type": "delta_net"}
    runs = []
    noting(runs, WrongOrder)(**FEW_SIZES, **row)
    assert ("linear", "head_dim", "attention") in too_early(runs[0])
