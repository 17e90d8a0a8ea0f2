"""One rank of test_torchtitan.py: torchtitan's own Trainer on a CPU. Arguments: folder, steps, ranks that share
weights, the model's flags as JSON, "compile" or "".

torchtitan 0.3 asks for the device in a few places that know GPUs alone; a CPU stands in for them here, not in zoo.
"""

import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import torch
import torchtitan.tools.utils as device


class Cpu:
    """What torchtitan asks of torch.cuda."""

    set_device = staticmethod(lambda which: None)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    get_device_name = staticmethod(lambda which=None: "cpu")
    get_device_properties = staticmethod(lambda which=None: types.SimpleNamespace(total_memory=2**34, name="cpu"))
    reset_peak_memory_stats = staticmethod(lambda *which: None)
    empty_cache = staticmethod(lambda: None)
    memory_stats = staticmethod(lambda which=None: {})
    synchronize = staticmethod(lambda *which: None)
    memory = types.SimpleNamespace(_record_memory_history=lambda **how: None)


device.device_type, device.device_module = "cpu", Cpu
device.get_local_device = lambda: torch.device("cpu")

import torch.distributed as dist  # noqa: E402
import torchtitan.distributed.utils as groups  # noqa: E402
from torchtitan.components.checkpointer import CheckpointManager  # noqa: E402
from torchtitan.components.dataloader import ParallelAwareDataloader  # noqa: E402
from torchtitan.components.loss import CrossEntropyLoss  # noqa: E402
from torchtitan.components.metrics import MetricsProcessor  # noqa: E402
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw  # noqa: E402
from torchtitan.components.tokenizer import BaseTokenizer  # noqa: E402
from torchtitan.config import CompileConfig, DebugConfig, ParallelismConfig, TrainingConfig  # noqa: E402
from torchtitan.tools.logging import init_logger  # noqa: E402
from torchtitan.trainer import Trainer  # noqa: E402

import zoo.training.torchtitan as ours  # noqa: E402

CORPUS = Path(__file__).resolve().parents[2] / "examples" / "corpora" / "shakespeare.txt"
# torch 2.13 has no dist.set_timeout, which torchtitan calls after the first step.
groups.set_pg_timeouts = lambda *args, **kwargs: None


class Bytes(torch.utils.data.IterableDataset):
    """Rows of text, dealt out to ranks in turn: the global batch does not depend on their number."""

    def __init__(self, rank, ranks, length, batch):
        self.rank, self.ranks, self.length, self.batch, self.at = rank, ranks, length, batch, 0
        self.text = torch.frombuffer(bytearray(CORPUS.read_bytes()), dtype=torch.uint8).long()

    def __iter__(self):
        while True:
            step, place = divmod(self.at, self.batch)
            index = (step * self.ranks + self.rank) * self.batch + place
            start = index * 7919 % (len(self.text) - self.length - 1)
            self.at += 1
            row = self.text[start : start + self.length + 1]
            yield {"input": row[:-1], "positions": torch.arange(self.length)}, row[1:]

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Loader(ParallelAwareDataloader):
    @dataclass(kw_only=True, slots=True)
    class Config(ParallelAwareDataloader.Config):
        pass

    def __init__(self, config, *, dp_world_size, dp_rank, tokenizer, seq_len, local_batch_size, **kwargs):
        rows = Bytes(dp_rank, dp_world_size, seq_len, local_batch_size)
        super().__init__(rows, dp_rank=dp_rank, dp_world_size=dp_world_size, batch_size=local_batch_size)


class NoTokenizer(BaseTokenizer):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config=None, *, tokenizer_path=None, **kwargs):
        super().__init__()

    def encode(self, *args, **kwargs):
        return []

    def decode(self, *args, **kwargs):
        return ""

    def get_vocab_size(self):
        return 256


def on_gloo(model, **kwargs):
    """zoo's layout; gloo has no division while it sums."""
    model = ours.parallelize(model, **kwargs)
    for module in model.modules():
        if hasattr(module, "set_force_sum_reduction_for_comms"):
            module.set_force_sum_reduction_for_comms(True)
    return model


def main(folder, steps, ranks, flags, compiled=""):
    torch.set_num_threads(1)
    spec = ours.model_spec(json.loads(flags))
    spec.parallelize_fn = on_gloo
    ranks = int(ranks)
    # The state of the loader is that of each rank, which torchtitan does not deal out again.
    checkpoint = CheckpointManager.Config(enable=True, interval=10, last_save_model_only=False, keep_latest_k=0)
    checkpoint.exclude_from_loading = ["dataloader"]
    config = Trainer.Config(
        model_spec=spec,
        dump_folder=folder,
        loss=CrossEntropyLoss.Config(global_vocab_size=256),
        tokenizer=NoTokenizer.Config(),
        dataloader=Loader.Config(),
        optimizer=default_adamw(lr=3e-3),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2),
        training=TrainingConfig(
            local_batch_size=8 // ranks,
            seq_len=64,
            steps=int(steps),
            disable_cuda_graphs=True,
            mixed_precision_param="float32",
        ),
        parallelism=ParallelismConfig(data_parallel_shard_degree=ranks, spmd_backend="partial_dtensor"),
        metrics=MetricsProcessor.Config(log_freq=1, disable_color_printing=True),
        checkpoint=checkpoint,
        compile=CompileConfig(enable=bool(compiled), components=["model"], backend="eager"),
        debug=DebugConfig(seed=0),
        activation_checkpoint=None,
    )
    init_logger()
    trainer = Trainer(config)
    try:
        trainer.train()
    finally:
        trainer.close()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
