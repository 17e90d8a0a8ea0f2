"""The plan of a conversion: which names become which, checked on the meta device before a byte is read.

Both directions use the same rules: forward matches their names and applies the operations, backward matches zoo's names
and applies the inverses.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import ConversionError
from ..files.writer import describe
from .family import Family
from .patterns import Pattern, natural_key
from .prediction import prediction_rules
from .rules import Context, Drop, Empty, Rule

# Names outside the body, which a file of the bare body does not have and whose names never start with its prefix.
_HEADS = ("lm_head", "embed_out", "score", "classifier", "qa_outputs")

Slot = str | list[str]


class LazyTensors(Sequence):
    """The tensors of one slot, each read when it is looked at, so that stacking holds one part at a time."""

    def __init__(self, names: list[str], read: Callable[[str], Tensor]):
        self.names, self.read = names, read

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> Tensor:
        return self.read(self.names[position])


@dataclass
class Step:
    """Some source tensors that together become some target tensors; without a rule, one tensor as it is."""

    sources: list[Slot]
    targets: list[Slot]
    rule: Rule | None = None
    ctx: Context | None = None
    backward: bool = False

    @property
    def source_patterns(self) -> list[Pattern]:
        return self.rule.ours if self.backward else self.rule.theirs

    @property
    def target_patterns(self) -> list[Pattern]:
        return self.rule.theirs if self.backward else self.rule.ours

    @property
    def many(self) -> set[str]:
        """Placeholders of the sources that stand for all their numbers."""
        return self.rule.many_ours if self.backward else self.rule.many_theirs

    @property
    def target_many(self) -> set[str]:
        return self.rule.many_theirs if self.backward else self.rule.many_ours

    @property
    def source_values(self) -> dict:
        return self.ctx.values if self.backward else self.rule.values_to_theirs(self.ctx.values)

    @property
    def target_values(self) -> dict:
        return self.rule.values_to_theirs(self.ctx.values) if self.backward else self.ctx.values

    def source_names(self) -> list[str]:
        return _flat(self.sources)

    def target_names(self) -> list[str]:
        return _flat(self.targets)

    def apply(self, read: Callable[[str], Tensor]) -> list:
        """The slots the operations produce from the tensors `read` gives."""
        slots = [LazyTensors(slot, read) if isinstance(slot, list) else read(slot) for slot in self.sources]
        if self.rule is None:
            return slots
        return self.rule.to_theirs(slots, self.ctx) if self.backward else self.rule.to_ours(slots, self.ctx)

    def run(self, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields (target name, tensor)."""
        for names, slot in zip(self.targets, self.apply(read), strict=True):
            yield from zip(names, slot, strict=True) if isinstance(names, list) else [(names, slot)]


@dataclass
class Plan:
    """All steps, what they will produce (`outputs`, meta tensors), and what was set aside (name -> its rule)."""

    steps: list[Step] = field(default_factory=list)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    aside: dict[str, Rule] = field(default_factory=dict)

    @property
    def kept(self) -> list[str]:
        return [name for name, rule in self.aside.items() if not isinstance(rule, Drop)]

    @property
    def dropped(self) -> list[str]:
        return [name for name, rule in self.aside.items() if isinstance(rule, Drop)]


class Planner:
    """Plans for one family and one ZooConfig.

    `around`: what a class with another head calls parts of the model, beginning of its names -> that of the family's;
    `body`: the family's files of a body alone are written without the prefix of a body.
    """

    def __init__(self, family: Family, config: Any, around: dict[str, str] | None = None, body: bool = False):
        rules = family.rules_for(config)
        self.family, self.config, self.rules = family, config, [*prediction_rules(rules, config), *rules]
        self.around, self.body = around or {}, body
        prefixes = self.around | family.prefixes | family.also_prefixes
        self.prefixes = sorted(prefixes.items(), key=lambda pair: -len(pair[0]))

    def forward(self, headers: dict[str, Tensor]) -> Plan:
        """Their names -> ours. Raises ConversionError for names that collide."""
        bare = not any(self._prefixed(name).startswith(self.family.base_prefix) for name in headers)
        names = {self._prefixed(name, bare): name for name in headers}
        if len(names) < len(headers):
            raise ConversionError("two tensors have the same name once their prefix is taken off.")
        return self._plan(headers, names, backward=False)

    def backward(self, headers: dict[str, Tensor]) -> Plan:
        """Our names -> theirs."""
        return self._plan(headers, {name: name for name in headers}, backward=True)

    def their_names(self, name: str) -> str:
        """Where the tensor that zoo calls `name` should have come from, for messages."""
        rule, _, ctx = self._find(name, backward=True)
        if rule is None:
            return self._unprefixed(name)
        values = dict.fromkeys(rule.many_theirs, 0) | rule.values_to_theirs(ctx.values)
        return " + ".join(self._unprefixed(pattern.format(values)) for pattern in rule.theirs)

    def as_seen(self, name: str) -> str:
        """One of their names as the patterns of the rules spell it."""
        return self._prefixed(name)

    def as_ruled(self, name: str) -> str:
        """One of their names as the rules see it, the same whichever prefixes it has or lacks."""
        return self._prefixed(name).removeprefix(self.family.base_prefix)

    def in_files(self, name: str) -> str:
        """A name as the rules give it -> as the family's files have it."""
        return self._unprefixed(name)

    def group_of(self, name: str) -> str:
        """What a tensor that is set aside belongs to: its name as far as the rule spells it out."""
        rule, position, _ = self._find(self._prefixed(name), backward=False)
        if rule is None:
            return name
        pattern = rule.theirs[position]
        if rule.aside_too:
            return pattern.text
        return pattern.beginning(self._prefixed(name)).rstrip(".")

    def _prefixed(self, name: str, bare: bool = False) -> str:
        for theirs, ours in self.prefixes:
            if name.startswith(theirs):
                name = ours + name[len(theirs) :]
                break
        return self.family.base_prefix + name if bare and not name.startswith(_HEADS) else name

    def _unprefixed(self, name: str) -> str:
        for theirs, ours in (self.around | self.family.prefixes).items():
            if name.startswith(ours):
                return theirs + name[len(ours) :]
        return name.removeprefix(self.family.base_prefix) if self.body else name

    def _plan(self, headers: dict[str, Tensor], names: dict[str, str], backward: bool) -> Plan:
        """`names`: the name the rules see -> the name in `headers`."""
        plan, steps = Plan(), {}
        for name in sorted(names, key=natural_key):
            rule, position, ctx = self._find(name, backward)
            if rule is None or (isinstance(rule, Empty) and headers[names[name]].numel()):
                steps[name] = Step([names[name]], [name if not backward else self._unprefixed(name)])
            elif rule.aside:
                plan.aside[names[name]] = rule
            else:
                self._collect(steps, Step([], [], rule, ctx, backward), position, name, names[name])
                if rule.aside_too and not backward:
                    plan.aside[names[name]] = rule
        for step in steps.values():
            self._complete(step, plan, headers)
        return plan

    def _find(self, name: str, backward: bool) -> tuple[Rule | None, int, Context | None]:
        """The rule that takes `name`, which of its patterns matched, and the context of its operations."""
        for rule in self.rules:
            for position, pattern in enumerate(rule.ours if backward else rule.theirs):
                values = pattern.match(name)
                if values is not None:
                    ctx = rule.context(self.config, values if backward else rule.values_to_ours(values))
                    if rule.applies(ctx):
                        return rule, position, ctx
        return None, 0, None

    def _collect(self, steps: dict, step: Step, position: int, name: str, source: str) -> None:
        """Adds a name to its step; meanwhile a slot maps the number of its {e} (None without one) to the name."""
        step.ctx.values = {key: value for key, value in step.ctx.values.items() if key not in step.many}
        step.sources = [{} for _ in step.source_patterns]
        step = steps.setdefault((id(step.rule), *sorted(step.ctx.values.items())), step)
        found = step.source_patterns[position].match(name)
        number = next((found[key] for key in step.many if key in found), None)
        step.sources[position][number] = source

    def _complete(self, step: Step, plan: Plan, headers: dict[str, Tensor]) -> None:
        """Turns what was collected into slots and adds the step."""
        if step.rule is not None:
            step.sources = self._slots_of_names(step)
            if not step.backward:
                step.ctx.shapes = [headers[name].shape for name in step.source_names()]
        self.add(step, plan, headers)

    def add(self, step: Step, plan: Plan, headers: dict[str, Tensor]) -> None:
        """Adds a step whose sources are known; names the targets unless they are known too. Raises ConversionError for
        tensors that do not fit the config, are missing, or would be written twice."""
        _refuse_mixed_dtypes(step, headers)
        try:
            slots = step.apply(headers.__getitem__)
        except (ValueError, RuntimeError, IndexError) as error:
            shapes = ", ".join(f"{name!r} ({describe(headers[name])})" for name in step.source_names()[:3])
            raise ConversionError(f"{shapes} cannot be laid out as the config says: {error}.") from error
        if step.rule is not None and not step.targets:
            step.targets = self._target_names(step, slots)
        plan.steps.append(step)
        for names, slot in zip(step.targets, slots, strict=True):
            for name, tensor in zip(names, slot, strict=True) if isinstance(names, list) else [(names, slot)]:
                if name in plan.outputs:
                    raise ConversionError(f"{name!r} would be written twice, last from {step.source_names()[0]!r}.")
                plan.outputs[name] = tensor

    def _slots_of_names(self, step: Step) -> list[Slot]:
        """Collected slots -> names, in order; a number or a whole slot that is missing is named."""
        count = max((max(slot) + 1 for slot in step.sources if slot and None not in slot), default=0)
        slots = []
        for pattern, slot in zip(step.source_patterns, step.sources, strict=True):
            many = step.many & set(pattern.placeholders)
            numbers = range(count) if many else [None]
            for number in numbers:
                if number not in slot:
                    missing = pattern.format(step.source_values | dict.fromkeys(many, number))
                    raise ConversionError(f"tensor {self._source_name(step, missing)!r} is missing.")
            slots.append([slot[number] for number in numbers] if many else slot[None])
        return slots

    def _source_name(self, step: Step, name: str) -> str:
        return name if step.backward else self._unprefixed(name)

    def _target_names(self, step: Step, slots: list) -> list[Slot]:
        targets = []
        for pattern, slot in zip(step.target_patterns, slots, strict=True):
            if isinstance(slot, Tensor):
                targets.append(pattern.format(step.target_values))
                continue
            (many,) = step.target_many & set(pattern.placeholders)
            targets.append([pattern.format(step.target_values | {many: number}) for number in range(len(slot))])
        if not step.backward:
            return targets
        put_back = self._unprefixed
        return [list(map(put_back, names)) if isinstance(names, list) else put_back(names) for names in targets]


def _refuse_mixed_dtypes(step: Step, headers: dict[str, Tensor]) -> None:
    """One tensor cannot hold two dtypes, and after a silent cast the original could not be restored."""
    first, *rest = step.source_names()
    for name in rest:
        if headers[name].dtype != headers[first].dtype:
            pair = " and ".join(f"{one!r} ({describe(headers[one])})" for one in (first, name))
            raise ConversionError(f"{pair} belong in one tensor but differ in dtype: choose one with dtype=.")


def _flat(slots: list[Slot]) -> list[str]:
    return [name for slot in slots for name in (slot if isinstance(slot, list) else [slot])]
