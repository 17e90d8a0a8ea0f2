"""The order of events: open, plan, calibrate, verify, measure, write. Nothing is written before all else is right."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from configuration_zoo import ZooConfig
from configuration_zoo.field_settings import nested, settings_of, spread
from conversion.engine.registry import OWN_TYPE
from conversion.engine.transfer import parse_dtype
from conversion.errors import ConversionError, one_line

from . import calibration, measurement, planner
from .choosing import cheapest_layers, number_of
from .distillation import INDEXER, row_length
from .healing import Healing, distillation, fill_healed, record
from .healing import heal as heal_folder
from .operation import ARITHMETIC, BITS, Operation, Request, SurgeryError, alike_layers, has_own, refuse_values
from .plan_file import Change
from .report import Done, Report, Stage
from .streaming import runnable
from .tensors import InMemory, Source, Tensors, build, open_source, operated
from .texts import ROW, Text, random_text, read_text
from .verification import verified
from .vocabularies import refuse_lost_tokens, tokens_to_keep
from .writing import Place, check_place, write_folder

CALIBRATION_TOKENS = 6144


@dataclass
class State:
    """A model under way: its config, its tensors as they would be read now, and what was done so far."""

    source: Source
    config: ZooConfig
    tensors: Tensors
    done: list[Done] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seed: int = 0
    progress: bool = False
    kept_tokens: list[int] | None = None  # numbers in the source of the tokens that are left, where some are not

    def model(self) -> PreTrainedModel:
        return build(self.config, self.tensors)


def operate(
    source: str | Path | PreTrainedModel,
    target: str | Path | None = None,
    wanted: dict[str, Any] | Sequence[Change] | None = None,
    *,
    apply: str | None = None,
    method: str | None = None,
    layers: Sequence[int] | str | None = None,
    calibrate: str | Path | Sequence[str] | Tensor | None = None,
    evaluate: str | Path | Sequence[str] | Tensor | None = None,
    heal: str | Path | Sequence[str] | Tensor | None = None,
    healing: Healing | None = None,
    at_most: float | None = None,
    dtype: str | torch.dtype | None = None,
    to: str | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    dry_run: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Makes of `source` (a folder, a Hub id, or a model) one whose config has the fields of `wanted`, in `target`;
    of several changes each sees what the one before has left.

    `apply` names an operation that changes no field, instead of `wanted`. Without a target the new model is
    `report.model`; with `to` the target is written as that family. `layers` limits an operation to some layers;
    `method` chooses between ways of the same change. `calibrate` and `evaluate` are texts: a file, a list, or tokens
    `[n, T]`; the last rows of a text are measured with, and never learnt from. Exact operations are verified on a short
    input first. `heal` is a text to learn from afterwards, as `healing` says; in a folder
    `zoo.surgery.heal` goes on where it is stopped. With `at_most` nothing is written if perplexity rises by more
    than that factor.

    Either `target` is complete afterwards, or SurgeryError says in one sentence what is wrong and nothing changed.
    """
    refuse_values({"seed": (seed, int), "at_most": (at_most, (int, float))})
    opened = open_source(source, parse_dtype(dtype))
    if target is not None and not dry_run:
        check_place(Path(target), opened.folder, overwrite)
    state = State(opened, opened.config, opened.tensors, seed=seed, progress=progress)
    text = None if calibrate is None else read_text(calibrate, opened.folder, opened.config)
    for change in changes_of(wanted, apply, method, layers):
        if change.apply is not None:
            perform_applied(state, change, text)
        else:
            perform(state, change.fields, change.method, change.layers, text)
    if state.kept_tokens is None:
        refuse_lost_tokens(opened, state.config)
    elif heal is not None:
        raise SurgeryError("vocab_size, --method used: heal the model first, then leave tokens out.")
    if heal is not None:
        (healing or Healing(seed=seed)).stages(state.config, state.changed)
    report = Report(opened.name, None, state.done, stage(opened.config), stage(state.config), warnings=state.warnings)
    report.changed = state.changed
    report.dtype = str(opened.config.dtype or torch.float32).removeprefix("torch.")
    if dry_run:
        return report
    texts = Texts(opened, heal if evaluate is None else evaluate, heal, row_length(state.config, ROW))
    measure(report, opened, state, texts.measured)
    measure_positions(report, opened, state, heal if evaluate is None else evaluate, texts.measured)
    in_folder = None not in (heal, target, opened.folder) and to in (None, OWN_TYPE) and at_most is None
    if heal is not None and not in_folder:
        heal_in_memory(report, opened, state, texts, healing or Healing(seed=seed))
    refuse_worse(report, at_most)
    if target is None:
        state.config.surgery = report.record()
        report.model, report.kept_tokens = state.model(), state.kept_tokens
        return report
    report = write_folder(Place(Path(target), max_shard_size, overwrite, to), state, report)
    return (
        heal_written(report, source, heal, evaluate, healing or Healing(seed=seed), progress) if in_folder else report
    )


def changes_of(
    wanted: dict[str, Any] | Sequence[Change] | None, apply: str | None, method: str | None, layers: Any
) -> list[Change]:
    """What is wanted, every name checked before anything is done. Raises SurgeryError for one that is no field or
    operation, and for both at once."""
    if apply is not None and wanted:
        raise SurgeryError(
            f"apply={apply!r} and fields to set are two operations: make one after the other, or a plan."
        )
    given = wanted if isinstance(wanted, (list, tuple)) else [Change(dict(wanted or {}), method, layers, apply)]
    changes = []
    for one in given:
        fields = spread(dict(one.fields), settings_of(ZooConfig))
        planner.refuse_unknown(fields)
        if one.apply is not None:
            planner.applied_operation(one.apply)
        changes.append(Change(fields, one.method, planner.parse_layers(one.layers), one.apply))
    return changes


def perform_applied(state: State, change: Change, text: Text | None) -> None:
    """An operation that changes no field. Raises SurgeryError where it cannot be done."""
    operation = planner.applied_operation(change.apply)
    if change.method is not None and change.method not in operation.methods:
        raise SurgeryError(f"method {change.method!r} is none of {change.apply}: there is {list(operation.methods)}.")
    with alike_layers(operation.name):
        step(
            state,
            operation,
            planner.requested(state.config, operation, {}, change.layers, change.method, state.seed),
            text,
        )


def perform(
    state: State, fields: dict[str, Any], method: str | None, layers: Any, text: Text | None, invents: bool = True
) -> None:
    """All operations that lead to `fields`, one after the other; `invents` as `next_operation` says. Raises
    SurgeryError where the fields are so already, or none leads there."""
    fields = planner.differing(state.config, fields)
    if not fields:
        raise SurgeryError("the model is already as it is wanted: there is nothing to change.")
    while fields:
        with alike_layers(next(iter(fields))):
            own = advance(state, fields, method, layers, text, invents)
        left = {name: value for name, value in fields.items() if name not in own}
        fields = planner.differing(state.config, left)  # some follow from others


def advance(
    state: State, fields: dict[str, Any], method: str | None, layers: Any, text: Text | None, invents: bool
) -> dict[str, Any]:
    """The first operation that `fields` ask for, on the layers that are named or cost least; → its own fields."""
    operation, own = planner.next_operation(state.config, fields, method, invents)
    if (count := number_of(layers, operation, state.config, own)) is not None:
        layers = cheapest_layers(state, operation, own, method, count, text)
    request = planner.requested(state.config, operation, own, layers, method, state.seed)
    if operation.keeps(state.config, request):
        request.tokens = tokens_to_keep(state, request, text)
    step(state, operation, request, text)
    return own


def step(state: State, operation: Operation, request: Request, text: Text | None) -> None:
    """One operation: the new config, the plan, the statistics it needs, and the proof of what it promises."""
    old, exactness = state.config, operation.exactness(state.config, request)
    new, tensors, calibration_record = made(state, operation, request, text)
    before = {name: getattr(old, name) for name in request.fields}
    done = Done(operation.name, request.fields, before, request.layers, str(exactness), request.method)
    done.calibration = calibration_record
    if exactness.word in (BITS, ARITHMETIC) or exactness.length is not None:
        done.largest_difference = verified(state, new, tensors, exactness, request.tokens)
    state.config, state.tensors = new, tensors
    state.kept_tokens = request.tokens or state.kept_tokens
    state.done.append(done)
    # Parts that were changed before layers were renumbered have no counterpart by number any more.
    state.changed = indexers_of(new, state.changed) if operation.renumbers else state.changed
    state.changed = [*state.changed, *([] if operation.renumbers else operation.changed(old, request))]


def indexers_of(config: ZooConfig, changed: list[str]) -> list[str]:
    """The indexers of all layers, if those that were changed have some: they are new whichever numbers they have."""
    if not any(place.endswith(f".{INDEXER}") for place in changed):
        return []
    return [f"{layer}.{INDEXER}" for layer, kind in enumerate(config.indexer_types) if kind == "full"]


def made(
    state: State, operation: Operation, request: Request, text: Text | None
) -> tuple[ZooConfig, Tensors, dict | None]:
    """(the new config, its tensors as they will be read, what was calibrated with) of one operation."""
    new = changed_config(state.config, operation.config(state.config, request))
    refuse_own_values(operation, new, request)
    statistics, of_what = calibrated(state, operation, request, text)
    rules = operation.rules(state.config, new, request, statistics)
    try:
        return new, operated(state.tensors, state.config, new, rules), of_what
    except SurgeryError:
        raise
    except ConversionError as error:
        raise SurgeryError(f"{operation.name}: not in this model, as another part of it follows: {error}") from error


def refuse_own_values(operation: Operation, new: ZooConfig, request: Request) -> None:
    """Raises SurgeryError where a layer that was to change keeps a value of its own in per_layer_config."""
    for name in (name for name in request.fields if has_own(new, name)):
        for layer in request.layers:
            if (value := getattr(new.per_layer_config[layer], name)) != request.fields[name]:
                raise SurgeryError(
                    f"{operation.name}: layer {layer} has {name}={value!r} of its own in per_layer_config."
                )


def calibrated(state: State, operation: Operation, request: Request, text: Text | None) -> tuple[dict, dict | None]:
    """The statistics an operation needs, and what they are of; with no text, of random tokens."""
    needs = operation.needs(state.config, request)
    if not needs:
        return {}, None
    if text is None:
        text = random_text(state.config, CALIBRATION_TOKENS, ROW, request.seed)
        state.warnings.append("no text to calibrate with: random tokens were taken, which costs some accuracy.")
    rows = text.to_learn()
    rows = rows[: max(1, CALIBRATION_TOKENS // rows.shape[1])]
    found = calibration.collect(runnable(state.config, state.tensors), needs, request.layers, rows, state.progress)
    return found, {"text": text.name, "sha256": text.sha256, "tokens": rows.numel()}


def changed_config(config: ZooConfig, changes: dict[str, Any]) -> ZooConfig:
    """The config with other values, what follows from them derived again; None takes a field out. Raises SurgeryError
    where they contradict what stays."""
    values = spread(json.loads(config.to_json_string()), settings_of(ZooConfig))
    # It describes a checkpoint that no longer exists.
    for name in ("source_config", "source_extras", "transformers_weights", "_name_or_path", "auto_map"):
        values.pop(name, None)
    values = {name: value for name, value in (values | changes).items() if value is not None}
    try:
        new = ZooConfig.from_dict(nested(values))
    except Exception as error:
        raise SurgeryError(f"the new config is refused: {one_line(error)}") from error
    new.dtype = config.dtype
    return new


def stage(config: ZooConfig) -> Stage:
    return Stage(**measurement.sizes(config))


class Texts:
    """What is measured and healed with, each None where nothing is said."""

    def __init__(self, opened: Source, measured: Any, healed: Any, length: int):
        self.measured, self.healed = (
            None if text is None else read_text(text, opened.folder, opened.config, length)
            for text in (measured, healed)
        )


def measure(report: Report, opened: Source, state: State, text: Text | None) -> None:
    """Perplexity before and after, and the divergence between."""
    if text is None:
        return
    rows = text.to_measure(measurement.EVALUATION_TOKENS)
    if state.kept_tokens is not None:
        rows = rows[torch.isin(rows, torch.tensor(state.kept_tokens)).all(1)]
        if not len(rows):
            state.warnings.append("every row of the text has a token that was left out: nothing was measured.")
            return
    report.evaluation = {"text": text.name, "sha256": text.sha256, "tokens": rows.numel()}
    before, after = runnable(opened.config, opened.tensors), runnable(state.config, state.tensors)
    report.before.perplexity = measurement.perplexity(before, rows, state.progress)
    if state.kept_tokens is not None:
        before = measurement.OfTokens(before, state.kept_tokens)
        rows = before.numbers(rows)
    report.after.perplexity = measurement.perplexity(after, rows, state.progress)
    report.after.divergence = measurement.divergence(before, after, rows)


def measure_positions(report: Report, opened: Source, state: State, given: Any, known: Text | None) -> None:
    """Perplexity before and after against the place in the context, where that has grown and the text, `known` in short
    rows, goes beyond what it was."""
    trained = opened.config.max_position_embeddings
    length = 0 if known is None else min(state.config.max_position_embeddings, known.ids.numel())
    if length <= trained:
        return
    text = read_text(given, opened.folder, state.config, length)
    rows = text.to_measure(max(measurement.EVALUATION_TOKENS, length))
    if rows.shape[1] <= trained:
        return
    edges = measurement.position_edges(trained, rows.shape[1])
    models = {"before": (opened.config, opened.tensors), "after": (state.config, state.tensors)}
    found = {
        name: measurement.perplexity_by_position(runnable(*model), rows, edges, state.progress)
        for name, model in models.items()
    }
    report.positions = [
        {"first": first, "last": last - 1, **{name: values[number] for name, values in found.items()}}
        for number, (first, last) in enumerate(zip(edges, edges[1:], strict=False))
    ]


def heal_in_memory(report: Report, opened: Source, state: State, texts: Texts, how: Healing) -> None:
    """The tensors under way become healed ones."""
    teacher = build(opened.config, opened.tensors, torch.float32)
    loop = distillation(teacher, state.model(), texts.healed, state.changed, how)
    loop.run(show=state.progress)
    headers = state.tensors.headers
    state.tensors = InMemory({name: loop.progress.weights[name].to("cpu", headers[name].dtype) for name in headers})
    report.healing.append(record(opened.name, texts.healed, loop))
    fill_healed(report, loop, texts.measured, state.progress)


def heal_written(report: Report, source: Any, text: Any, evaluate: Any, how: Healing, progress: bool) -> Report:
    """The same in the folder that was written."""
    teacher = Path(source).absolute() if Path(source).exists() else source
    healed = heal_folder(report.target, teacher, text, evaluate=evaluate, progress=progress, **asdict(how))
    return replace(healed, files=report.files, warnings=report.warnings)


def refuse_worse(report: Report, at_most: float | None) -> None:
    """Raises SurgeryError where perplexity has risen by more than a factor, or was not measured."""
    if at_most is None:
        return
    if report.evaluation is None:
        raise SurgeryError("at_most compares perplexities: give a text to evaluate with.")
    after = (report.healed or report.after).perplexity
    if not after <= at_most * report.before.perplexity:
        raise SurgeryError(
            f"perplexity rose from {report.before.perplexity:.3f} to {after:.3f}, more than {at_most:g} times: nothing "
            "was written."
        )
