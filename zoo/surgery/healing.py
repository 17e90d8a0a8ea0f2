"""Healing: what a changed model lost, learnt again from its teacher, in memory or in its folder.

In a folder it can be stopped at any step, by a signal too: `TARGET/.healing` keeps weights, optimizer and position, the
same command goes on to the same weights, and the folder's own weights are the best that were found so far.
"""

import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from configuration_zoo import ZooConfig
from configuration_zoo.version import __version__
from conversion.engine.registry import OWN_TYPE
from conversion.engine.zoo_side import empty_model
from conversion.files.sources import read_config

from . import measurement
from .card import write_surgery_card
from .distillation import INDEXER, Distillation, HealingStage, Progress, has_part, plan_stages, row_length
from .healing_folder import HealingFolder
from .healing_sharded import ShardedDistillation, anywhere, is_first, processes, refuse_unsharded, sharded, wait_for_all
from .healing_streamed import heal_streamed
from .operation import SurgeryError, refuse_values
from .report import Report
from .streaming import runnable
from .tensors import Source, build, open_source
from .texts import ROW, Text, read_text

# A learning rate of 1e-3 was measured to be right for a model of 64 channels; wider ones want smaller steps.
RATE, WIDTH = 1e-3, 64
# What of a plan says how to heal.
HOW = ("steps", "train", "learning_rate", "layerwise", "indexer", "seed")


@dataclass(frozen=True)
class Healing:
    """What to learn with: so many steps on logits, after `layerwise` ones on the outputs of what was changed and
    `indexer` ones of new indexers (None: about half as many), at a learning rate that follows from the width where it
    is None."""

    steps: int = 150
    train: str = "all"
    learning_rate: float | None = None
    layerwise: int | None = None
    seed: int = 0
    indexer: int | None = None

    def stages(self, config: ZooConfig, changed: Sequence[str]) -> list[HealingStage]:
        """Raises SurgeryError for values that are none."""
        whole = {name: (getattr(self, name), int) for name in ("steps", "layerwise", "indexer", "seed")}
        refuse_values(whole | {"learning_rate": (self.learning_rate, (int, float))})
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise SurgeryError(f"learning_rate={self.learning_rate} must be more than 0.")
        for name in ("steps", "layerwise", "indexer"):
            if (getattr(self, name) or 0) < 0:
                raise SurgeryError(f"{name}={getattr(self, name)}: write a number from 0.")
        rate = default_rate(config) if self.learning_rate is None else self.learning_rate
        stages = plan_stages(changed, self.steps, self.train, rate, self.layerwise, self.indexer)
        if not stages:
            raise SurgeryError("steps=0 and no step on outputs: there is nothing to heal with.")
        return stages


def default_rate(config: ZooConfig) -> float:
    """1e-3 · √(64 / D), at most 1e-3."""
    return RATE * min(1.0, math.sqrt(WIDTH / config.hidden_size))


def device_for_healing() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def distillation(
    teacher: PreTrainedModel, student: PreTrainedModel, text: Text, changed: Sequence[str], how: Healing
) -> Distillation:
    """The loop of these models, in float32. Raises SurgeryError where one of them has no logits of tokens."""
    for model in (teacher, student):
        if model.get_output_embeddings() is None:
            raise SurgeryError(f"{type(model).__name__} gives no logits of tokens: only language models are healed.")
    stages = how.stages(student.config, changed)
    device = device_for_healing()
    return Distillation(teacher.to(device), student.float().to(device), text.to_learn(), changed, stages, how.seed)


def record(teacher: str, text: Text, loop: Distillation) -> dict[str, Any]:
    """What a config says of a healing."""
    return {
        "teacher": teacher,
        "text": text.name,
        "sha256": text.sha256,
        "tokens": loop.rows.numel(),
        "stages": [asdict(stage) for number, stage in enumerate(loop.stages) if number not in loop.progress.idle],
        "divergence": loop.progress.best,
        "zoo_version": __version__,
    }


def heal(
    target: str | Path,
    teacher: str | Path | None = None,
    text: str | Path | Sequence[str] | Tensor | None = None,
    *,
    steps: int | None = None,
    train: str | None = None,
    learning_rate: float | None = None,
    layerwise: int | None = None,
    indexer: int | None = None,
    evaluate: str | Path | Sequence[str] | Tensor | None = None,
    save_every: int = 50,
    seed: int | None = None,
    streamed: bool | None = None,
    progress: bool = False,
) -> Report:
    """Heals the model in the folder `target` with a teacher, the model it was made from where none is named.

    What is left out is as in the run that `target` still holds, else 1,000 steps of all parameters. The text is learnt
    from but for its last rows, with which the table is measured, if `evaluate` is no other. `streamed` heals by outputs
    with one layer in memory; None: where both models are more than is free. Raises SurgeryError for a folder that
    `zoo surgery` has not made, for other values than those of a run under way, and when a signal stops it.
    """
    folder = HealingFolder(Path(target))
    config, made = healed_config(folder.path)
    asked = {
        "teacher": None if teacher is None else str(teacher),
        "text": None if text is None else str(text) if isinstance(text, (str, Path)) else "texts",
        "steps": steps,
        "train": train,
        "learning_rate": learning_rate,
        "layerwise": layerwise,
        "indexer": indexer,
        "seed": seed,
        "processes": processes(),
    }
    plan = folder.plan(asked, {"teacher": made["source"], "steps": 1000, "train": "all", "seed": 0})
    if text is None:
        text = plan["text"]
    if text is None or (text == "texts" and not isinstance(text, list)):
        raise SurgeryError("healing needs a text: the model's own kind of text serves best (--text).")
    how = Healing(**{name: plan[name] for name in HOW if name in plan})
    if made.get("healing"):  # parts were fitted once, and indexers
        how = replace(how, layerwise=how.layerwise or 0, indexer=how.indexer or 0)
    source, own = open_source(plan["teacher"], torch.float32), open_source(folder.path, torch.float32)
    rows = read_text(text, folder.path, config, row_length(config, ROW))
    in_layers = processes() == 1 and needs_streaming(own) if streamed is None else streamed
    if processes() > 1:
        refuse_unsharded(in_layers, how.stages(config, made.get("changed", [])))
    if in_layers:
        refuse_logits(how, own)
    measured = rows if evaluate is None else read_text(evaluate, folder.path, config, row_length(config, ROW))
    run = Run(folder, config, made, how, plan["teacher"], rows, measured, save_every, progress)
    run.check(in_layers, source, own)
    folder.begin(plan | {"sha256": rows.sha256})
    return heal_by_layer(run, source, own) if in_layers else heal_whole(run, source, own)


@dataclass
class Run:
    """One healing of a folder: what the folder says of its surgery, how it learns, from whom and what, and what is
    measured with."""

    folder: HealingFolder
    config: ZooConfig
    made: dict[str, Any]
    how: Healing
    teacher: str
    text: Text
    measured: Text
    save_every: int
    progress: bool

    @property
    def changed(self) -> list[str]:
        return self.made.get("changed", [])

    @property
    def stages(self) -> list[HealingStage]:
        return self.how.stages(self.config, self.changed)

    def fitted(self, teacher: Source, student: Source) -> list[str]:
        """The changed parts that both models have."""
        alike = [empty_model(model.config) for model in (teacher, student)]
        return [place for place in self.changed if all(has_part(model, place) for model in alike)]

    def check(self, in_layers: bool, teacher: Source, student: Source) -> None:
        """Raises SurgeryError for stages that are none; with one layer in memory for those of indexers, and where the
        teacher has no changed part."""
        indexers = any(stage.loss == INDEXER for stage in self.stages)
        if in_layers and indexers:
            raise SurgeryError(
                "new indexers learn in a whole model: heal with --whole, or leave them with --indexer 0."
            )
        if in_layers and not self.fitted(teacher, student):
            raise SurgeryError("healing by outputs: the teacher has none of the changed parts; heal by logits.")

    def healed_by(self, loop: "Distillation | Pair") -> list[dict[str, Any]]:
        """What the record says of all healings, this one the last."""
        return [*(self.made.get("healing") or []), record(self.teacher, self.text, loop)]


def heal_whole(run: Run, teacher: Source, student: Source) -> Report:
    """`heal` with both models in memory."""
    report = Report.of_record(run.made)
    if processes() > 1:
        models = sharded(teacher), sharded(student)
        loop = ShardedDistillation(*models, run.text.to_learn(), run.changed, run.stages, run.how.seed)
    else:
        models = build(teacher.config, teacher.tensors), build(student.config, student.tensors)
        loop = distillation(*models, run.text, run.changed, run.how)
    run_in_folder(loop, run, report)
    report.healing = run.healed_by(loop)
    fill_healed(report, loop, run.measured, run.progress)
    run.folder.write_weights(loop.progress.weights)
    close(run.folder, run.config, report)
    return report


def heal_by_layer(run: Run, teacher: Source, student: Source) -> Report:
    """`heal` with one layer in memory."""
    report, folder, progress = Report.of_record(run.made), run.folder, run.progress
    places, stages = run.fitted(teacher, student), run.stages
    loop = Pair(runnable(teacher.config, teacher.tensors), runnable(student.config, student.tensors))
    before = folder.kept / "before.json"
    if before.is_file():
        known = json.loads(before.read_text())
        report.before, report.after = type(report.before)(**known["before"]), type(report.after)(**known["after"])
    else:
        fill(report, loop, run.measured, progress)
        before.write_text(json.dumps({"before": asdict(report.before), "after": asdict(report.after)}))
    heal_streamed(folder, teacher, student, places, run.text.to_learn(), stages[0], run.how.seed, progress)
    new = open_source(folder.path, torch.float32)
    loop.student, loop.rows, loop.stages = runnable(new.config, new.tensors), run.text.to_learn(), stages
    fill_healed(report, loop, run.measured, progress)
    loop.progress.best = report.healed.divergence
    report.healing = run.healed_by(loop)
    close(folder, run.config, report)
    return report


@dataclass
class Pair:
    """Teacher and student, and what is said of their healing, as a Distillation has them."""

    teacher: PreTrainedModel
    student: PreTrainedModel
    rows: Tensor | None = None
    stages: list[HealingStage] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)


def refuse_logits(how: Healing, student: Source) -> None:
    """Raises SurgeryError for steps on logits, which need all of both models in memory."""
    if how.steps:
        raise SurgeryError(
            f"steps={how.steps}: healing on logits holds both models, {bytes_to_heal(student) / 2**30:,.1f} GiB; "
            "--steps 0 --layerwise 80 heals a layer at a time, torchrun -m zoo heal TARGET --layerwise 0 shares them."
        )


def bytes_to_heal(student: Source) -> int:
    """Of a teacher as large, and of weights, gradients and two moments, in float32."""
    return sum(5 * 4 * tensor.numel() for tensor in student.tensors.headers.values())


def needs_streaming(student: Source) -> bool:
    """Whether that is more than the memory that is free; False where the system does not say."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return False
    return not torch.cuda.is_available() and bytes_to_heal(student) > free


def healed_config(folder: Path) -> tuple[ZooConfig, dict[str, Any]]:
    """(config, the record of its surgery). Raises SurgeryError for a folder without one."""
    raw = read_config(folder)
    if raw.get("model_type") != OWN_TYPE or not raw.get("surgery"):
        raise SurgeryError(
            f"{folder} was not made by `zoo surgery`: there is nothing to heal. Zoo's own form is healed."
        )
    return ZooConfig.from_dict(raw), raw["surgery"]


def run_in_folder(loop: Distillation, run: Run, report: Report) -> None:
    """All steps that are left, kept every so many and when a signal comes."""
    folder, every = run.folder, run.save_every
    earlier = folder.state()
    if earlier is not None:
        loop.restore(earlier["loop"])
        report.after = type(report.after)(**earlier["after"])
        report.before = type(report.before)(**earlier["before"])
    else:
        fill(report, loop, run.measured, run.progress)

    def save() -> None:
        kept = {"loop": loop.state(), "before": asdict(report.before), "after": asdict(report.after)}
        folder.save(kept, loop.progress.weights)

    with stopping() as wanted:

        def after_step() -> None:
            done = loop.progress
            stops = anywhere(wanted())
            if stops or done.step % every == 0:
                save()
            if stops:
                raise SurgeryError(
                    f"stopped after step {done.step} of stage {done.stage + 1} of {len(loop.stages)}: the same command "
                    "goes on from there."
                )

        loop.run(after_step, run.progress)


def fill(report: Report, loop: Distillation, text: Text, progress: bool) -> None:
    """Perplexity of teacher and student before healing, and the divergence between."""
    if report.healing and (report.evaluation or {}).get("sha256") == text.sha256:
        return  # healed again: what it was before any healing is on the record
    rows = text.to_measure(measurement.EVALUATION_TOKENS)
    report.evaluation = {"text": text.name, "sha256": text.sha256, "tokens": rows.numel()}
    report.before.perplexity = measurement.perplexity(loop.teacher, rows, progress)
    report.after.perplexity = measurement.perplexity(loop.student, rows, progress)
    report.after.divergence = measurement.divergence(loop.teacher, loop.student, rows)


def fill_healed(report: Report, loop: Distillation, text: Text, progress: bool) -> None:
    """The same once it is healed."""
    rows = text.to_measure(measurement.EVALUATION_TOKENS)
    report.evaluation = {"text": text.name, "sha256": text.sha256, "tokens": rows.numel()}
    perplexity = measurement.perplexity(loop.student, rows, progress)
    divergence = measurement.divergence(loop.teacher, loop.student, rows)
    report.healed = replace(report.after, perplexity=perplexity, divergence=divergence)


def close(folder: HealingFolder, config: ZooConfig, report: Report) -> None:
    """What config and card say, and nothing of the run any more."""
    report.target = folder.path
    wait_for_all()
    if is_first():
        config.surgery = report.record()
        config.save_pretrained(folder.path)
        write_surgery_card(folder.path, config, None, report)
        shutil.rmtree(folder.kept)


@contextmanager
def stopping() -> Iterator[Any]:
    """Inside, SIGTERM and SIGINT are asked for, and end nothing."""
    caught: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda number, frame: caught.append(number)) for number in numbers}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
