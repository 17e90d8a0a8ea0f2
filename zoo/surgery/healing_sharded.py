"""Healing over several processes, `torchrun --nproc-per-node N -m zoo heal ...` or accelerate's launcher: by FSDP2 each
keeps a part of every weight, gradient and moment of AdamW, and has its rows of every batch.

The steps are those of one process: gradients are means over all rows, the rows of a step follow from its number.
Only outputs are not fitted so, as they read parts of a model: those steps are for one process, a layer in memory.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from conversion.engine.registry import OWN_TYPE
from conversion.files.sources import read_config
from description_zoo.heads import model_class

from .distillation import LOGITS, Distillation, HealingStage
from .operation import SurgeryError
from .tensors import Source


def processes() -> int:
    """How many a launcher has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", 0)) == 0


def wait_for_all() -> None:
    """Every process goes on when all are here."""
    if dist.is_initialized():
        dist.barrier()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process has a part; all processes ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def anywhere(said: bool) -> bool:
    """Whether one of the processes says so; all ask at once."""
    if not dist.is_initialized():
        return said
    flag = torch.tensor(float(said), device=torch.device("cuda") if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(flag)
    return flag.item() > 0


def own_part(tensor: Tensor) -> Tensor:
    """A copy of what this process has of a tensor."""
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach().clone()


def as_part(part: Tensor, like: Tensor) -> Tensor:
    """The inverse of `own_part`, of a tensor that is shared out as `like` is."""
    if not hasattr(like, "to_local"):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def each_tensor(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Dicts and lists again, with `function` of the tensors in them."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: each_tensor(one, function) for key, one in value.items()}
    return [each_tensor(one, function) for one in value] if isinstance(value, list) else value


def own_state(folder: Path) -> Path:
    """Where this process keeps its part of the state of a run."""
    rank = int(os.environ.get("RANK", 0))
    return folder / (f"state-{rank}.pt" if rank else "state.pt")


def refuse_unsharded(streamed: bool, stages: list[HealingStage]) -> None:
    """Raises SurgeryError for steps that several processes do not share."""
    if streamed:
        raise SurgeryError("--streamed heals in one process: leave it out over several.")
    if other := [stage for stage in stages if stage.loss != LOGITS]:
        raise SurgeryError(
            f"{other[0].steps} steps on {other[0].loss} are for one process: do them first (--steps 0), then "
            "--layerwise 0 --indexer 0 over several."
        )
    if any(stage.train == "lora" for stage in stages):
        raise SurgeryError("train='lora' is for one process: --train all or changed over several.")


def sharded(source: Source) -> PreTrainedModel:
    """The model of a folder in float32, a part of every weight in each process, which reads no more of it than that.
    Raises SurgeryError for what is not in zoo's own form."""
    from transformers.distributed import DistributedConfig

    if read_config(source.folder).get("model_type") != OWN_TYPE:
        raise SurgeryError(
            f"{source.name} is of another family: `zoo convert` it first, to heal over several processes."
        )
    layout = DistributedConfig(fsdp_size=processes())
    return model_class(source.config).from_pretrained(source.folder, distributed_config=layout, dtype=torch.float32)


class ShardedDistillation(Distillation):
    """A process's part of the loop; a step has a row for each process at least."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.rows_of_batch = -(-self.rows_of_batch // processes()) * processes()

    def batch(self) -> Tensor:
        rows, count = super().batch(), processes()
        if len(rows) % count:
            raise SurgeryError(f"{count} processes do not share the {len(rows)} rows of the text: give a longer one.")
        return rows[dist.get_rank() :: count]

    def step(self, stage: HealingStage, parameters: list[nn.Parameter], learner: nn.Module) -> float:
        """The loss is the mean over all processes."""
        loss = torch.tensor(super().step(stage, parameters, learner), device=self.student.device)
        dist.all_reduce(loss)
        return loss.item() / processes()

    def state(self) -> dict[str, Any]:
        """What this process has of it."""
        optimizer = None if self.optimizer is None else self.optimizer.state_dict()
        whole = {"progress": vars(self.progress), "optimizer": optimizer, "student": self.student.state_dict()}
        return each_tensor(whole, own_part)

    def restore(self, state: dict[str, Any]) -> None:
        like = self.student.state_dict()
        for table in (state["student"], state["progress"]["weights"]):
            table |= {name: as_part(tensor, like[name]) for name, tensor in table.items()}
        super().restore(state)

    def take_up(self) -> None:
        """Moments of AdamW are shared out as their weights are; the number of their steps is in every process."""
        if self._resumed is not None:
            weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
            for number, kept in self._resumed["optimizer"]["state"].items():
                kept |= {name: as_part(one, weights[number]) for name, one in kept.items() if name != "step"}
        super().take_up()
