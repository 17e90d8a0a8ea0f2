"""Healing by outputs with one layer in memory: what heals a model of any size.

    1. the teacher runs once over the rows, a layer at a time; what each changed part reads and gives goes to a file
    2. the student runs over a few rows, a layer at a time; where its turn comes, a changed part is trained on that file
    3. the folder's files are replaced, written a tensor at a time

The loss, the steps and their rates are those of `distillation`'s stage on outputs; here each part has an optimizer of
its own, so that none waits for another. A run that was stopped goes on with the first part that is not done.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from conversion.files.checkpoint import DTYPES
from conversion.files.writer import ShardWriter

from .calibration import batches
from .distillation import CLIP, LENGTH, ROWS, HealingStage, output_error, parts_of, rate_at, tapped
from .healing_folder import PARTS, HealingFolder, replace
from .operation import SurgeryError
from .streaming import streamed
from .tensors import Source, Tensors

# Tokens whose states are on disk, `2 · 4 · D` bytes each for a part.
MOST_TOKENS = 2**16


class InFloat32:
    """Tensors read in float32."""

    def __init__(self, tensors: Tensors):
        self._tensors = tensors
        self.headers = {name: in_float32(header) for name, header in tensors.headers.items()}

    def read(self, name: str) -> Tensor:
        return in_float32(self._tensors.read(name))


def in_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def heal_streamed(
    folder: HealingFolder,
    teacher: Source,
    student: Source,
    places: list[str],
    ids: Tensor,
    stage: HealingStage,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """The folder's parts at `places` ("3.mixer") fit the teacher's on rows `[n, T]`; its files are replaced at the end.
    Raises SurgeryError where a loss is no finite number."""
    parts = folder.kept / PARTS
    parts.mkdir(exist_ok=True)
    left = [place for place in places if not (parts / f"{place}.safetensors").is_file()]
    if left:
        rows = rows_for(ids, len(left), teacher.config.hidden_size, parts)
        states = record_states(streamed(teacher.config, InFloat32(teacher.tensors)), left, rows, parts, progress)
        learner = streamed(student.config, InFloat32(student.tensors))
        train_parts(learner, left, rows, states, parts, stage, seed, progress)
        for place in left:
            states_file(parts, place).unlink()
    rewrite(folder, {name: read for place in places for name, read in read_part(parts, place).items()})


def rows_for(ids: Tensor, places: int, width: int, parts: Path) -> Tensor:
    """The rows `[n, T]` that are learnt from: as many as the states of all parts have room for on the disk."""
    length = min(LENGTH, ids.shape[1])
    rows = ids[:, : ids.shape[1] // length * length].reshape(-1, length)
    room = shutil.disk_usage(parts).free // 2 // (places * 2 * 4 * width)
    return rows[: max(ROWS, min(MOST_TOKENS, room) // length)]


def states_file(parts: Path, place: str) -> Path:
    return parts / f"{place}.states"


def memory_mapped(path: Path, rows: int, length: int, width: int) -> Tensor:
    """What a part reads and what it gives, `[2, n, T, D]` in float32, in a file."""
    return torch.from_file(str(path), shared=True, size=2 * rows * length * width).view(2, rows, length, width)


@torch.no_grad()
def record_states(
    teacher: PreTrainedModel, places: list[str], rows: Tensor, parts: Path, progress: bool
) -> dict[str, Tensor]:
    """{place: `[2, n, T, D]`} of a pass over all rows."""
    width = teacher.config.hidden_size
    states = {place: memory_mapped(states_file(parts, place), *rows.shape, width) for place in places}
    done = 0
    for some in tqdm(list(batches(rows)), desc="The teacher's outputs", disable=not progress):
        with tapped(teacher, places) as found:
            teacher.model(some, use_cache=False)
        for place, pair in found.items():
            for number, one in enumerate(pair):
                states[place][number, done : done + len(some)] = one
        done += len(some)
    return states


@torch.no_grad()
def train_parts(
    student: PreTrainedModel,
    places: list[str],
    rows: Tensor,
    states: dict[str, Tensor],
    parts: Path,
    stage: HealingStage,
    seed: int,
    progress: bool,
) -> None:
    """One pass of the student over a few rows; each part is trained where it is called, with what it is called with."""
    count = min(ROWS, len(rows))
    given = {place: states[place][0, :count] for place in places}
    with tqdm(total=len(places) * stage.steps, desc="Healing", disable=not progress) as bar:

        def around(place: str, call: Callable) -> Callable:
            def trained(x: Tensor, *args: Any, **kwargs: Any) -> Any:
                part = Part(student, place)
                part.train(lambda some: call(some, *args, **kwargs), states[place], stage, seed, bar.update)
                part.save(parts)
                return call(x, *args, **kwargs)

            return trained

        with tapped(student, places, given, around):
            student.model(rows[:count], use_cache=False)


class Part:
    """The modules of a place, whose layer is in memory for now."""

    def __init__(self, model: PreTrainedModel, place: str):
        self.place, self.parameters = place, {}
        names = {module: name for name, module in model.named_modules()}
        for module in parts_of(model, place):
            self.parameters |= {f"{names[module]}.{name}": one for name, one in module.named_parameters()}

    @torch.enable_grad()
    def train(
        self, call: Callable, states: Tensor, stage: HealingStage, seed: int, after_step: Callable[[], Any]
    ) -> None:
        """All steps of the stage. Raises SurgeryError where a loss is no finite number."""
        learning = [one for one in self.parameters.values() if one.is_floating_point()]
        for one in learning:
            one.requires_grad_(True)
        optimizer = torch.optim.AdamW(learning, lr=stage.learning_rate, betas=(0.9, 0.95), weight_decay=0)
        read, expected = states
        for step in range(stage.steps):
            optimizer.param_groups[0]["lr"] = stage.learning_rate * rate_at(step, stage.steps)
            generator = torch.Generator().manual_seed(seed * 1009 * 1_000_003 + step)
            some = torch.randperm(len(read), generator=generator)[: min(ROWS, len(read))]
            output = call(read[some])
            loss = output_error(output[0] if isinstance(output, tuple) else output, expected[some])
            if not loss.isfinite():
                raise SurgeryError(f"healing: the loss of {self.place} is {loss.item()}; lower learning_rate.")
            loss.backward()
            nn.utils.clip_grad_norm_(learning, CLIP)
            optimizer.step()
            optimizer.zero_grad()
            after_step()
        for one in learning:
            one.requires_grad_(False)

    def save(self, parts: Path) -> None:
        """A file of its own, there whole or not at all."""
        tensors = {name: one.detach().contiguous() for name, one in self.parameters.items()}
        replace(parts / f"{self.place}.safetensors", lambda new: save_file(tensors, new))


def read_part(parts: Path, place: str) -> dict[str, Callable[[], Tensor]]:
    """{tensor: how it is read} of a part that was trained."""
    path = parts / f"{place}.safetensors"
    with safe_open(path, "pt") as stored:
        names = list(stored.keys())

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(path, "pt") as stored:
                return stored.get_tensor(name)

        return read

    return {name: reader(name) for name in names}


def rewrite(folder: HealingFolder, trained: dict[str, Callable[[], Tensor]]) -> None:
    """The folder's files with the trained tensors instead of their own, a tensor at a time; each file is replaced
    at once."""
    for file in sorted(folder.path.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}
            headers = {name: torch.empty(one.get_shape(), dtype=DTYPES[one.get_dtype()], device="meta")
                       for name, one in slices.items()}  # fmt: skip
            if not headers.keys() & trained.keys():
                continue
            writer = ShardWriter(folder.kept, headers, 2**62, stem=f"new-{file.stem}")
            for name, header in headers.items():
                tensor = trained[name]() if name in trained else stored.get_tensor(name)
                writer.write(name, tensor.to(header.dtype))
            writer.finish()
        replace(file, lambda new, writer=writer: (folder.kept / writer.files[0]).replace(new))
