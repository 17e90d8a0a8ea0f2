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
from .distillation import Distillation, HealingStage, Progress, has_part, plan_stages
from .healing_folder import HealingFolder
from .healing_streamed import heal_streamed
from .operation import SurgeryError
from .report import Report
from .streaming import runnable
from .tensors import Source, build, open_source
from .texts import Text, read_text

# A learning rate of 1e-3 was measured to be right for a model of 64 channels; wider ones want smaller steps.
RATE, WIDTH = 1e-3, 64


@dataclass(frozen=True)
class Healing:
    """What to learn with: so many steps on logits, after `layerwise` ones on the outputs of what was changed (None:
    about half as many), at a learning rate that follows from the width where it is None."""

    steps: int = 150
    train: str = "all"
    learning_rate: float | None = None
    layerwise: int | None = None
    seed: int = 0

    def stages(self, config: ZooConfig, changed: Sequence[str]) -> list[HealingStage]:
        """Raises SurgeryError for values that are none."""
        if self.steps < 0 or (self.layerwise or 0) < 0:
            raise SurgeryError(f"steps={self.steps}, layerwise={self.layerwise}: write numbers from 0.")
        rate = default_rate(config) if self.learning_rate is None else self.learning_rate
        stages = plan_stages(changed, self.steps, self.train, rate, self.layerwise)
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
        "stages": [asdict(stage) for stage in loop.stages],
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
        "seed": seed,
    }
    plan = folder.plan(asked, {"teacher": made["source"], "steps": 1000, "train": "all", "seed": 0})
    if text is None:
        text = plan["text"]
    if text is None or (text == "texts" and not isinstance(text, list)):
        raise SurgeryError("healing needs a text: the model's own kind of text serves best (--text).")
    how = Healing(plan["steps"], plan["train"], plan["learning_rate"], plan["layerwise"], plan["seed"])
    if how.layerwise is None and made.get("healing"):
        how = Healing(how.steps, how.train, how.learning_rate, 0, how.seed)  # parts were fitted once
    source, own = open_source(plan["teacher"], torch.float32), open_source(folder.path, torch.float32)
    rows = read_text(text, folder.path, config)
    in_layers = needs_streaming(own) if streamed is None else streamed
    if in_layers:
        refuse_logits(how, own)
    folder.begin(plan | {"sha256": rows.sha256})
    report = Report.of_record(made)
    measured = rows if evaluate is None else read_text(evaluate, folder.path, config)
    if in_layers:
        return heal_by_layer(folder, config, (source, own), (rows, measured), made, how, plan, report, progress)
    student = build(own.config, own.tensors)
    loop = distillation(build(source.config, source.tensors), student, rows, made.get("changed", []), how)
    run_in_folder(loop, folder, measured, report, save_every, progress)
    report.healing = [*(made.get("healing") or []), record(plan["teacher"], rows, loop)]
    finish(folder, config, loop, measured, report, progress)
    return report


def heal_by_layer(
    folder: HealingFolder,
    config: ZooConfig,
    models: tuple[Source, Source],
    texts: tuple[Text, Text],
    made: dict[str, Any],
    how: Healing,
    plan: dict[str, Any],
    report: Report,
    progress: bool,
) -> Report:
    """`heal` with one layer in memory. Raises SurgeryError where the teacher has no changed part."""
    teacher, student = models
    stages = how.stages(config, made.get("changed", []))
    alike = [empty_model(model.config) for model in models]
    places = [place for place in made.get("changed", []) if all(has_part(model, place) for model in alike)]
    if not places:
        raise SurgeryError("healing by outputs: the teacher has none of the changed parts; heal by logits.")
    loop = Pair(runnable(teacher.config, teacher.tensors), runnable(student.config, student.tensors))
    before = folder.kept / "before.json"
    if before.is_file():
        known = json.loads(before.read_text())
        report.before, report.after = type(report.before)(**known["before"]), type(report.after)(**known["after"])
    else:
        fill(report, loop, texts[1], progress)
        before.write_text(json.dumps({"before": asdict(report.before), "after": asdict(report.after)}))
    heal_streamed(folder, teacher, student, places, texts[0].to_learn(), stages[0], how.seed, progress)
    new = open_source(folder.path, torch.float32)
    loop.student, loop.rows, loop.stages = runnable(new.config, new.tensors), texts[0].to_learn(), stages
    fill_healed(report, loop, texts[1], progress)
    loop.progress.best = report.healed.divergence
    report.healing = [*(made.get("healing") or []), record(plan["teacher"], texts[0], loop)]
    close(folder, config, report)
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
            "--steps 0 --layerwise 80 heals a layer at a time, examples/finetune_distill.py on several GPUs."
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


def run_in_folder(
    loop: Distillation, folder: HealingFolder, measured: Text, report: Report, every: int, progress: bool
) -> None:
    """All steps that are left, kept every so many and when a signal comes."""
    earlier = folder.state()
    if earlier is not None:
        loop.restore(earlier["loop"])
        report.after = type(report.after)(**earlier["after"])
        report.before = type(report.before)(**earlier["before"])
    else:
        fill(report, loop, measured, progress)

    def save() -> None:
        kept = {"loop": loop.state(), "before": asdict(report.before), "after": asdict(report.after)}
        folder.save(kept, loop.progress.weights)

    with stopping() as wanted:

        def after_step() -> None:
            done = loop.progress
            if wanted() or done.step % every == 0:
                save()
            if wanted():
                raise SurgeryError(
                    f"stopped after step {done.step} of stage {done.stage + 1} of {len(loop.stages)}: the same command "
                    "goes on from there."
                )

        loop.run(after_step, progress)


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


def finish(
    folder: HealingFolder, config: ZooConfig, loop: Distillation, measured: Text, report: Report, progress: bool
) -> None:
    """The best weights, config and card; what was kept for going on is removed."""
    fill_healed(report, loop, measured, progress)
    folder.write_weights(loop.progress.weights)
    close(folder, config, report)


def close(folder: HealingFolder, config: ZooConfig, report: Report) -> None:
    """What config and card say, and nothing of the run any more."""
    config.surgery = report.record()
    config.save_pretrained(folder.path)
    write_surgery_card(folder.path, config, None, report)
    shutil.rmtree(folder.kept)
    report.target = folder.path


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
