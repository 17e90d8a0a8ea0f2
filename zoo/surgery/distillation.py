"""Healing: a changed model learns to do what its teacher, the source, does. Layer by layer first, then as a whole.

    outputs   every changed part is given the teacher's input and fits the teacher's output, ‖ŷ - y‖² / ‖y‖²: all parts
              learn in one forward, and none sees another's error
    indexer   new indexers follow the attention of their layers, which is dense meanwhile, as it is for outputs
              (DeepSeek-V3.2, arXiv 2512.02556, §2.1.1)
    logits    KL(teacher ‖ student) on the logits; with indexers, whose choice now counts, their loss as well

There is no cross entropy: on any other text than the model's own it makes things worse. AdamW (0.9, 0.95) without
decay, gradients clipped at 1, 10 steps of warm-up, cosine to a tenth. Batches follow from the seed and the number of
the step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor, nn
from transformers import PreTrainedModel

from configuration_zoo import ZooConfig
from modeling_zoo.attention_sparse_indexer import SharedIndices

from .measurement import kl
from .operation import SurgeryError

OUTPUTS, INDEXER, LOGITS = "outputs", "indexer", "logits"
TRAINED = ("all", "changed", "lora")
ROWS, LENGTH, VALIDATION_ROWS = 4, 256, 4
WARM_UP, LAST_RATE, CLIP = 10, 0.1, 1.0
# How often a stage looks whether it has become better.
LOOKS = 6
LORA_RANK = 8
# Relative error of a part that does what the teacher's does, but for the rounding of float32: nothing to fit.
FITTED = 1e-9


@dataclass
class HealingStage:
    """So many steps by one loss; `train` says what learns: "all", what was "changed", or adapters ("lora")."""

    loss: str
    steps: int
    learning_rate: float
    train: str = "all"


def plan_stages(
    changed: Sequence[str],
    steps: int = 150,
    train: str = "all",
    learning_rate: float = 1e-3,
    layerwise: int | None = None,
    indexer: int | None = None,
) -> list[HealingStage]:
    """`layerwise` steps on outputs (None: about half as many as `steps`, none where no part was changed), as many as
    `indexer` says of new indexers (the same), then `steps` on logits. Raises SurgeryError for a word that is none of
    `TRAINED`, and for steps of indexers where none is new."""
    if train not in TRAINED:
        raise SurgeryError(f"train={train!r} is none of {list(TRAINED)}.")
    if train == "changed" and not changed:
        raise SurgeryError("train='changed': nothing of this model is known to have been changed.")
    new = {split_place(place)[1] == INDEXER for place in changed}
    if indexer and True not in new:
        raise SurgeryError(f"indexer={indexer}: surgery gave this model no new indexer.")
    half = min(steps * 8 // 15, steps)
    first = (half if False in new else 0) if layerwise is None else layerwise
    second = (half if True in new else 0) if indexer is None else indexer
    stages = [
        HealingStage(OUTPUTS, first, 3 * learning_rate, "changed"),
        HealingStage(INDEXER, second, 3 * learning_rate, "changed"),
        HealingStage(LOGITS, steps, learning_rate, train),
    ]
    return [stage for stage in stages if stage.steps]


@dataclass
class Progress:
    """Where healing stands: the stage, its next step, and the best divergence so far with the weights that gave it;
    which stages had nothing to do."""

    stage: int = 0
    step: int = 0
    best: float = math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)
    curve: list[list[float]] = field(default_factory=list)  # [stage, step, loss]
    idle: list[int] = field(default_factory=list)


class Distillation:
    """`student` learns from `teacher` on rows `[n, T]`, of which the last are kept to see what is best."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        ids: Tensor,
        changed: Sequence[str],
        stages: Sequence[HealingStage],
        seed: int = 0,
    ):
        self.teacher, self.student, self.stages, self.seed = teacher.eval(), student.eval(), list(stages), seed
        # An indexer ranks keys far away too.
        usual = ids.shape[1] if with_indexers(student) else LENGTH
        length = min(row_length(student.config, usual), ids.shape[1])
        self.rows_of_batch = max(2, ROWS * LENGTH // length) if length > LENGTH else ROWS
        rows = ids[:, : ids.shape[1] // length * length].reshape(-1, length)
        kept = min(VALIDATION_ROWS, len(rows) // 4)
        self.rows, self.validation = rows[: len(rows) - kept], rows[len(rows) - kept :]
        known = [place for place in changed if has_part(student, place)]
        self.indexers = [place for place in known if split_place(place)[1] == INDEXER]
        self.places = [place for place in known if place not in self.indexers and has_part(teacher, place)]
        self.progress = Progress()
        self.optimizer: torch.optim.Optimizer | None = None
        self._expected: Tensor | None = None
        self._resumed: dict[str, Any] | None = None
        teacher.requires_grad_(False)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self, after_step: Callable[[], None] | None = None, show: bool = False) -> Progress:
        """All steps that are left; `after_step` is called behind each. The student ends with the best weights. Raises
        SurgeryError where a loss is no finite number."""
        done = self.progress
        if not done.weights:
            self.look()
        total = sum(stage.steps for stage in self.stages)
        before = sum(stage.steps for stage in self.stages[: done.stage]) + done.step
        with tqdm(total=total, initial=before, desc="Healing", disable=not show) as bar:
            while done.stage < len(self.stages):
                self.run_stage(self.stages[done.stage], after_step, bar)
                done.stage, done.step, self.optimizer = done.stage + 1, 0, None
        self.student.load_state_dict(done.weights)
        return done

    def run_stage(self, stage: HealingStage, after_step: Callable[[], None] | None, bar: Any) -> None:
        done, interval = self.progress, max(1, stage.steps // LOOKS)
        with self.adapted(stage.train) as learner:
            parameters = self.learning(stage, learner)
            self.optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, betas=(0.9, 0.95), weight_decay=0)
            self.take_up()
            if stage.loss == OUTPUTS and done.step == 0 and self.is_fitted():
                done.idle.append(done.stage)  # after exact operations, where steps would only go astray
                return
            while done.step < stage.steps:
                loss = self.step(stage, parameters, learner)
                done.curve.append([done.stage, done.step, loss])
                done.step += 1
                bar.update(1)
                if done.step % interval == 0 or done.step == stage.steps:
                    self.look()
                if after_step is not None:
                    after_step()

    def step(self, stage: HealingStage, parameters: list[nn.Parameter], learner: nn.Module) -> float:
        """One update; → the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = stage.learning_rate * rate_at(self.progress.step, stage.steps)
        rows = self.batch().to(self.student.device)
        loss = {OUTPUTS: self.output_loss, INDEXER: self.indexer_loss, LOGITS: self.logit_loss}[stage.loss](
            rows, learner
        )
        if not loss.isfinite():
            raise SurgeryError(f"healing: the loss of step {self.progress.step} is {loss.item()}; lower learning_rate.")
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def batch(self) -> Tensor:
        """The rows of this step, whichever steps were done in this process."""
        number = (self.seed * 1009 + self.progress.stage) * 1_000_003 + self.progress.step
        generator = torch.Generator().manual_seed(number)
        return self.rows[torch.randperm(len(self.rows), generator=generator)[: self.rows_of_batch]]

    # -- the losses ----------------------------------------------------------------------------------------------------

    def logit_loss(self, rows: Tensor, learner: nn.Module) -> Tensor:
        with torch.no_grad():
            expected = self.teacher(rows.to(self.teacher.device), use_cache=False).logits
        with learning_indexers(self.student) as indices:
            loss = kl(expected, learner(rows, use_cache=False, **indices).logits)
        if not indices:
            return loss
        return loss + self.student.config.indexer_loss_coef * indices["shared_indices"].mean_loss()

    def indexer_loss(self, rows: Tensor, learner: nn.Module) -> Tensor:
        """Raises SurgeryError where no indexer learns."""
        with dense_attention(self.student), learning_indexers(self.student) as indices:
            if not (indices and self.indexers):
                raise SurgeryError("indexer_loss_coef=0, or no layer with a new indexer: there is nothing to warm up.")
            self.student.model(rows, use_cache=False, **indices)
        return indices["shared_indices"].mean_loss()

    @torch.no_grad()
    def is_fitted(self) -> bool:
        return self.output_loss(self.batch().to(self.student.device)).item() < FITTED

    def output_loss(self, rows: Tensor, learner: nn.Module | None = None) -> Tensor:
        """Raises SurgeryError where no part was changed that the teacher has too."""
        if not self.places:
            raise SurgeryError("healing by outputs: the teacher has none of the changed parts; heal by logits.")
        with torch.no_grad(), tapped(self.teacher, self.places) as wanted:
            self.teacher.model(rows.to(self.teacher.device), use_cache=False)
        given = {place: read.to(rows.device) for place, (read, _) in wanted.items()}
        with dense_attention(self.student), tapped(self.student, self.places, given) as found:
            self.student.model(rows, use_cache=False)
        losses = [output_error(found[place][1], wanted[place][1].to(rows.device)) for place in self.places]
        return torch.stack(losses).mean()

    # -- what learns, and what is best ---------------------------------------------------------------------------------

    @contextmanager
    def adapted(self, train: str) -> Iterator[nn.Module]:
        """The student, for "lora" inside adapters that are merged into it at the end."""
        if train != "lora":
            yield self.student
            return
        from peft import LoraConfig, get_peft_model

        from modeling_zoo.platform_peft import lora_targets

        torch.manual_seed(self.seed)
        adapter = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, **lora_targets(self.student))
        wrapped = get_peft_model(self.student, adapter)
        yield wrapped
        self.student = wrapped.merge_and_unload()
        self.look()

    def learning(self, stage: HealingStage, learner: nn.Module) -> list[nn.Parameter]:
        """The parameters that learn; all others stand still."""
        if stage.train == "lora":
            return [parameter for parameter in learner.parameters() if parameter.requires_grad]
        learner.requires_grad_(stage.train == "all")
        if stage.train == "changed":
            learns = {OUTPUTS: self.places, INDEXER: self.indexers}
            for place in learns.get(stage.loss, [*self.places, *self.indexers]):
                for module in parts_of(learner, place):
                    module.requires_grad_(True)
        return [parameter for parameter in learner.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def look(self) -> None:
        """Keeps the weights where the divergence on the kept rows is the lowest so far."""
        if any("lora_" in name for name, _ in self.student.named_parameters()):
            return  # what adapters give is looked at when they are merged
        if self._expected is None:
            self._expected = self.teacher(self.validation.to(self.teacher.device), use_cache=False).logits
        found = kl(self._expected, self.student(self.validation.to(self.student.device), use_cache=False).logits).item()
        if found < self.progress.best or not self.progress.weights:
            self.progress.best = found
            self.progress.weights = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """What a later process goes on from."""
        optimizer = None if self.optimizer is None else self.optimizer.state_dict()
        return deepcopy({"progress": vars(self.progress), "optimizer": optimizer, "student": self.student.state_dict()})

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; weights and optimizer wait for the stage, which may put adapters around them."""
        self.progress, self._resumed = Progress(**state["progress"]), state

    def take_up(self) -> None:
        """What `restore` was given, once everything that learns is there."""
        if self._resumed is not None:
            self.student.load_state_dict(self._resumed["student"])
            self.optimizer.load_state_dict(self._resumed["optimizer"])
            self._resumed = None


def output_error(found: Tensor, expected: Tensor) -> Tensor:
    """‖ŷ - y‖² / ‖y‖²."""
    expected = expected.float()
    return (found.float() - expected).square().sum() / expected.square().sum().clamp(min=1e-12)


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate: a linear warm-up, then half a cosine to a tenth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    along = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * along))


# -- parts of layers ---------------------------------------------------------------------------------------------------


def split_place(place: str) -> tuple[int, str]:
    """ "3.mixer" → (3, "mixer")."""
    layer, _, part = place.partition(".")
    return int(layer), part


def has_part(model: PreTrainedModel, place: str) -> bool:
    """Whether a model has such a layer with such a part."""
    number, part = split_place(place)
    layers = model.model.layers
    if part == INDEXER:
        return number < len(layers) and bool(parts_of(model, place))
    return number < len(layers) and hasattr(layers[number], "mixer_name" if part == "mixer" else "mlp")


def parts_of(model: nn.Module, place: str) -> list[nn.Module]:
    """The modules of a part: a hybrid layer has two mixers."""
    number, part = split_place(place)
    layer = model.model.layers[number]
    if part == INDEXER:
        found = getattr(getattr(layer, "self_attn", None), "indexer", None)
        return [] if found is None else [found]
    names = ("self_attn", "linear_attn") if part == "mixer" else ("mlp",)
    return [getattr(layer, name) for name in names if hasattr(layer, name)]


# -- indexers ----------------------------------------------------------------------------------------------------------


def row_length(config: ZooConfig, usual: int) -> int:
    """Tokens of a row: more than an indexer takes, so that it has to leave some out."""
    layers = [
        config.per_layer_config[index] for index, kind in enumerate(config.layer_types) if kind == "indexed_attention"
    ]
    keys = max((layer.index_topk for layer in layers), default=0)
    return min(max(usual, 2 * keys), config.max_position_embeddings)


def with_indexers(model: nn.Module) -> list[nn.Module]:
    """The attentions that have one."""
    return [module for module in model.modules() if getattr(module, "indexer", None) is not None]


@contextmanager
def learning_indexers(model: nn.Module) -> Iterator[dict[str, Any]]:
    """While it is open, attentions with an indexer leave its loss in what is yielded, an argument of the forward; {} if
    the config has no `indexer_loss_coef`."""
    mixers = with_indexers(model) if model.config.indexer_loss_coef else []
    for mixer in mixers:
        mixer.training = True
    try:
        yield {"shared_indices": SharedIndices()} if mixers else {}
    finally:
        for mixer in mixers:
            mixer.training = False


@contextmanager
def dense_attention(model: nn.Module) -> Iterator[None]:
    """While it is open, attentions with an indexer read all keys."""
    settings = [mixer.indexer.config.indexer for mixer in with_indexers(model)]
    before = [one["warmup"] for one in settings]
    for one in settings:
        one["warmup"] = True
    try:
        yield
    finally:
        for one, value in zip(settings, before, strict=True):
            one["warmup"] = value


@contextmanager
def tapped(
    model: PreTrainedModel,
    places: Sequence[str],
    given: dict[str, Tensor] | None = None,
    wrap: Callable[[str, Callable], Callable] | None = None,
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """While it is open, {place: (what the part read, what it gave)} of the last forward; with `given` it reads that
    instead of what comes to it, and with `wrap` it is called through `wrap(place, call)`."""
    found, undo = {}, []

    def around(place, call):
        def tap(x, *args, **kwargs):
            x = x if given is None else given[place].to(x.dtype)
            output = call(x, *args, **kwargs)
            found[place] = x, output[0] if isinstance(output, tuple) else output
            return output

        return tap

    try:
        for place in places:
            number, part = split_place(place)
            layer = model.model.layers[number]
            owner, name = (layer, "mixer") if part == "mixer" else (layer.mlp, "forward")
            call = getattr(owner, name)
            setattr(owner, name, around(place, call if wrap is None else wrap(place, call)))
            undo.append((owner, name))
        yield found
    finally:
        for owner, name in undo:
            delattr(owner, name)
