"""What healing keeps inside the folder that it heals, and how it changes the folder's weights."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .healing_sharded import is_first, own_state, wait_for_all, whole
from .operation import SurgeryError

KEPT, PLAN, PARTS = ".healing", "plan.json", "parts"


class HealingFolder:
    """A model folder at `path`; `path/.healing` holds a run under way."""

    def __init__(self, path: Path):
        self.path, self.kept = path, path / KEPT

    @property
    def under_way(self) -> bool:
        """Whether something was learnt that a run can go on from: one that was refused, or failed at once, is none."""
        return own_state(self.kept).is_file() or any(self.kept.glob(f"{PARTS}/*.safetensors"))

    def plan(self, asked: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        """What is to be done: as the run under way, if there is one, else as asked. Raises SurgeryError where both
        differ."""
        earlier = json.loads((self.kept / PLAN).read_text()) if self.under_way else None
        if earlier is None:
            return {name: defaults.get(name) if value is None else value for name, value in asked.items()}
        for name, value in asked.items():
            if value is not None and value != earlier.get(name):
                raise SurgeryError(
                    f"{name}={value!r}: {self.kept} holds a run with {earlier.get(name)!r}; go on with that one, or "
                    "remove it."
                )
        return earlier

    def begin(self, plan: dict[str, Any]) -> None:
        """Writes the plan down. Raises SurgeryError where the text is not what the run under way began with."""
        path = self.kept / PLAN
        if self.under_way:
            if json.loads(path.read_text())["sha256"] != plan["sha256"]:
                raise SurgeryError(f"the text {plan['text']} has changed since the run in {self.kept} began.")
            return
        if is_first():
            shutil.rmtree(self.kept, ignore_errors=True)
            self.kept.mkdir()
            replace(path, lambda new: new.write_text(json.dumps(plan, indent=2) + "\n"))
        wait_for_all()

    def state(self) -> dict[str, Any] | None:
        """What was saved last."""
        path = own_state(self.kept)
        return torch.load(path, weights_only=True) if path.is_file() else None

    def save(self, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """The state of the run, and the best weights as the model's own."""
        replace(own_state(self.kept), lambda new: torch.save(state, new))
        self.write_weights(weights)

    def write_weights(self, weights: dict[str, Tensor]) -> None:
        """The tensors of the folder's files with other numbers, each file replaced at once."""
        weights = {name: whole(tensor) for name, tensor in weights.items()}
        if not is_first():
            return
        files = sorted(self.path.glob("*.safetensors"))
        for file in files:
            with safe_open(file, "pt") as stored:
                names = list(stored.keys())
                tensors = {name: weights[name].to("cpu", stored.get_tensor(name).dtype) for name in names}
            save_file({name: one.contiguous() for name, one in tensors.items()}, beside(file), {"format": "pt"})
        for file in files:
            os.replace(beside(file), file)


def beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def replace(path: Path, write: Any) -> None:
    """A file that is there whole or not at all."""
    write(beside(path))
    os.replace(beside(path), path)
