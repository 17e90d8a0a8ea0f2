"""zoo models in torchtitan (0.3), which trains on thousands of GPUs: a ModelSpec, its layout, and the folder back.

    from zoo.training.torchtitan import model_spec, write_folder

    config = Trainer.Config(model_spec=model_spec({"hidden_size": 1024, ...}), ...)   # any flags of ZooConfig
    Trainer(config).train()
    write_folder("outputs/checkpoint/step-1000", {"hidden_size": 1024, ...}, "model")  # a zoo folder with its card

Data parallelism is FSDP2, replicated or not, layer by layer, each compiled by itself where torchtitan's compile is on.
torchtitan computes the loss from the logits: what a model adds to its loss elsewhere is refused by name, experts are
balanced by their correction bias. This module alone needs torchtitan (`make test-torchtitan` sets it up).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.distributed.fsdp import disable_fsdp_gradient_division
from torchtitan.protocols.model import BaseModel
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.protocols.state_dict_adapter import StateDictAdapter

from configuration_zoo import ZooConfig
from description_zoo.card import write_plain_card
from description_zoo.flops import flops
from modeling_zoo import ZooForCausalLM
from modeling_zoo.train_router_loss import CorrectionBiasBalancer

PREFIX = "net."
# What a model adds to its loss itself, where torchtitan's loss of the logits does not reach.
OWN_LOSSES = (
    "router_aux_loss_coef", "router_z_loss_coef", "output_z_loss_coef", "indexer_loss_coef", "num_mtp_layers",
    "loss_chunk_size",
)  # fmt: skip


class ZooTitan(BaseModel):
    """A ZooForCausalLM as torchtitan calls a model: tokens `[B, T]` and their positions → logits `[B, T, V]`."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseModel.Config):
        # Fields of ZooConfig.
        flags: dict = field(default_factory=dict)

        def update_from_config(self, *, config: Any, **kwargs: Any) -> None:
            """Nothing of the trainer's settings changes the model."""

        def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
            """(parameters, FLOPs of a token in training), as `zoo inspect` counts them."""
            return sum(weight.numel() for weight in model.parameters()), flops(model.net, seq_len)["train"]

    def __init__(self, config: "ZooTitan.Config"):
        super().__init__()
        self.net = ZooForCausalLM(checked(ZooConfig(**config.flags)))

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor | None = None, attention_masks: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        """Documents of a row are told apart by positions that begin again."""
        return self.net(input_ids=tokens, position_ids=positions, use_cache=False).logits

    def verify_module_protocol(self) -> None:
        """The parts of the model are transformers', not torchtitan's."""

    def init_states(self, *, buffer_device: torch.device | None = None) -> None:
        """Draws all weights and computes all buffers, after torchtitan has allocated them."""
        for part in (*self.net.modules(), *self.net.parameters(), *self.net.buffers()):
            part._is_hf_initialized = False
        self.net.init_weights()


def checked(config: ZooConfig) -> ZooConfig:
    """The config itself. Raises ValueError for one that adds to its loss what torchtitan would leave out."""
    for name in OWN_LOSSES:
        if getattr(config, name, None):
            raise ValueError(
                f"torchtitan computes the loss from the logits and would leave out {name}={getattr(config, name)}: set "
                "it to 0 (experts are balanced by use_score_correction_bias=True), or train with zoo train."
            )
    return config


def parallelize(
    model: nn.Module,
    *,
    parallel_dims: Any,
    training: Any,
    parallelism: Any,
    compile_config: Any,
    ac_config: Any,
    dump_folder: str,
) -> nn.Module:
    """FSDP2 for each layer and the rest, replicated where asked for. Raises ValueError for other layouts."""
    for name, ways in (("tensor", "tp"), ("expert", "ep"), ("pipeline", "pp"), ("context", "cp")):
        if getattr(parallel_dims, ways, 1) > 1:
            raise ValueError(
                f"{ways}={getattr(parallel_dims, ways)}: a zoo model takes no {name} parallelism in torchtitan; "
                "transformers' DistributedConfig splits it by tp and ep (examples/train_distributed.py)."
            )
    if ac_config is not None:
        model.net.gradient_checkpointing_enable()
    if compile_config is not None and compile_config.enable:
        for layer in model.net.model.layers:
            layer.compile(backend=compile_config.backend)
    names = ["dp_replicate", "fsdp"] if parallel_dims.dp_replicate_enabled else ["fsdp"]
    policy = MixedPrecisionPolicy(
        param_dtype=TORCH_DTYPE_MAP[training.mixed_precision_param],
        reduce_dtype=TORCH_DTYPE_MAP[training.mixed_precision_reduce],
        cast_forward_inputs=False,
    )
    settings = {"mesh": parallel_dims.get_mesh(names), "mp_policy": policy}
    for layer in model.net.model.layers:
        fully_shard(layer, **settings)
    fully_shard(model, **settings)
    # torchtitan's loss is a sum over the global number of targets.
    disable_fsdp_gradient_division(model)
    return model


def balance_experts(optimizers: Any, model_parts: list[nn.Module], parallel_dims: Any) -> None:
    """Moves the correction bias of the experts before each step of the optimizer, where the model has one."""
    for part in model_parts:
        if getattr(part.net.config, "use_score_correction_bias", False):
            balancer = CorrectionBiasBalancer(part.net)
            optimizers.register_step_pre_hook(lambda *args, balancer=balancer, **kwargs: balancer.step())


class ZooStateDict(StateDictAdapter):
    """torchtitan's names → those of a zoo folder, which are the model's own."""

    def __init__(self, model_config: BaseModel.Config, hf_assets_path: str | None):
        self.model_config, self.hf_assets_path, self.fqn_to_index_mapping = model_config, hf_assets_path, None

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {name.removeprefix(PREFIX): value for name, value in state_dict.items()}

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        return {PREFIX + name: value for name, value in hf_state_dict.items()}


def model_spec(flags: dict[str, Any], flavor: str = "own") -> ModelSpec:
    """What torchtitan's `Trainer.Config(model_spec=...)` takes, of fields of ZooConfig. Raises ValueError for a loss
    that torchtitan would leave out."""
    checked(ZooConfig(**flags))
    return ModelSpec(
        name="zoo",
        flavor=flavor,
        model=ZooTitan.Config(flags=flags),
        parallelize_fn=parallelize,
        pipelining_fn=None,
        post_optimizer_build_fn=balance_experts,
        state_dict_adapter=ZooStateDict,
    )


def write_folder(checkpoint: str | Path, flags: dict[str, Any], target: str | Path) -> None:
    """A zoo folder with code and card from torchtitan's checkpoint of one step, however many ranks wrote it; one
    process reads it. Raises ValueError for a folder that is no checkpoint."""
    if not (Path(checkpoint) / ".metadata").is_file():
        raise ValueError(f"{checkpoint} is no checkpoint of torchtitan: it has no .metadata (name one step's folder).")
    model = ZooForCausalLM(ZooConfig(**flags))
    weights = {PREFIX + name: value for name, value in model.state_dict().items()}
    dcp.load(weights, checkpoint_id=str(checkpoint))
    model.load_state_dict({name.removeprefix(PREFIX): value for name, value in weights.items()})
    model.save_pretrained(target)
    write_plain_card(Path(target), model.config)
