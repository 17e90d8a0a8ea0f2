"""The residual stream of a model: which matrices read it, behind which norm, and which tensors write to it.

A change of its coordinates, x → x A, is free where every writer W becomes Aᵀ W and every reader V becomes
V A⁻ᵀ (Ashkboos et al. 2024, SliceGPT, arXiv 2401.15024). Readers are found by running the model without numbers: a
module that is given a norm's output reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from configuration_zoo import ZooConfig
from conversion.engine.zoo_side import expected_tensors

from .depth import LAYER, is_last
from .distillation import row_length
from .operation import SurgeryError

# Blocks in which the residual stream is read behind norms, written by sums, and touched by nothing else.
PLAIN_BLOCKS = ("pre_norm", "parallel", "parallel_two_norms", "mixer_only", "mlp_only")
SLOTS = ("attn_norm", "mlp_norm")
FINAL = "model.norm"
EMBEDDING, POSITIONS = "model.embed_tokens.weight", "model.embed_positions.weight"


@dataclass
class Stream:
    """`readers`: norm → the matrices `[..., D]` that read its output; `writers`: tensor → which of its
    dimensions is D."""

    readers: dict[str, list[str]] = field(default_factory=dict)
    writers: dict[str, int] = field(default_factory=dict)


def refuse_other_streams(config: ZooConfig, field: str) -> None:
    """Raises SurgeryError, beginning with `field`, for a model whose stream is more than norms, sums and one width."""
    reasons = {
        "an embedding norm": config.embedding_norm,
        "an embedding of another width": config.embedding_size is not None,
        "an input of its own for each layer": bool(config.hidden_size_per_layer_input),
        "no final norm": not config.final_norm,
        "zero experts, which give their input": config.zero_expert_type == "identity",
        "sinusoidal positions, which no weight holds": config.position_embedding_type == "sinusoidal",
    }
    if other := set(config.block_types) - set(PLAIN_BLOCKS):
        raise SurgeryError(f"{field}: block_type={min(other)!r} does more to the residual stream than add to it.")
    if found := next((name for name, there in reasons.items() if there), None):
        raise SurgeryError(f"{field}: the model has {found}.")


def stream_of(config: ZooConfig, field: str) -> Stream:
    """Raises SurgeryError, beginning with `field`, where something reads or writes in another way."""
    refuse_other_streams(config, field)
    if config.tie_word_embeddings:
        raise SurgeryError(f"{field}: embedding and head are one table; --set tie_word_embeddings=false parts them.")
    tensors = expected_tensors(config).tensors
    found = Stream(readers_of(config, field), {EMBEDDING: 1})
    if POSITIONS in tensors:
        found.writers[POSITIONS] = 1
    for name, tensor in tensors.items():
        if name.startswith(LAYER) and is_last(name.removeprefix(LAYER).partition(".")[2]):
            # Experts have a dimension in front; a bias has D alone.
            vector = name.endswith("bias")
            found.writers[name] = tensor.ndim - 1 if vector else tensor.ndim - 2
    return found


def readers_of(config: ZooConfig, field: str) -> dict[str, list[str]]:
    """{norm: the matrices that read it}, the head's among them; in the order of the model."""
    from description_zoo.training_memory import fake_model
    from modeling_zoo.mlp_experts import Experts
    from modeling_zoo.norms import Norm

    model = fake_model(config, list(range(config.num_hidden_layers))).eval()
    names = {module: name for name, module in model.named_modules()}
    outputs: dict[int, tuple[str, Tensor]] = {}  # the tensors are held, so that no other gets their place
    readers: dict[str, list[str]] = {}
    idle = {name for module, name in names.items() if isinstance(module, (nn.Linear, Experts))}

    def note_output(module: nn.Module, args: tuple, output: Tensor) -> None:
        outputs[output.untyped_storage()._cdata] = (names[module], output)

    def note_reader(module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
        norm, _ = outputs.get(given.untyped_storage()._cdata, (None, None)) if given is not None else (None, None)
        if norm is not None or isinstance(module, nn.Linear):
            idle.discard(names[module])
        if norm is not None:
            known = readers.setdefault(norm, [])
            for name, weight in module.named_parameters(recurse=False):
                reads = weight.ndim > 1 and weight.shape[-1] == config.hidden_size and not is_down(name)
                reads = reads and not name.endswith("bias")
                if reads and (full := f"{names[module]}.{name}") not in known:
                    known.append(full)

    for module, name in names.items():
        if isinstance(module, Norm) and (name == FINAL or name.rpartition(".")[2] in SLOTS):
            module.register_forward_hook(note_output)
        elif next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(note_reader, with_kwargs=True)
    with next(model.parameters()).fake_mode, torch.no_grad():
        # An indexer chooses where there are more keys than it takes.
        model(torch.ones(1, row_length(config, 8), dtype=torch.long), use_cache=False)
    if idle:
        raise SurgeryError(f"{field}: {min(idle)} reads something else than a norm, or nothing in this run.")
    if unread := [name for name, _ in outputs.values() if not readers.get(name)]:
        raise SurgeryError(f"{field}: {unread[0]} is read by no matrix, but scaled or mixed first.")
    refuse_scaled(config, field, model, [one for names in readers.values() for one in names])
    return readers


def refuse_scaled(config: ZooConfig, field: str, model: nn.Module, readers: list[str]) -> None:
    """Raises SurgeryError for a matrix of a layer that is as wide as the residual stream and none of the `readers`:
    what it reads is scaled first, or normed again."""
    from modeling_zoo.mlp_routers import Router

    for name, module in model.named_modules():
        if isinstance(module, Router) and config.per_layer_config[layer_number(name)].router["input_norm"]:
            raise SurgeryError(f"{field}: {name} norms what it reads again (router.input_norm=True).")
        if not (isinstance(module, nn.Linear) and name.startswith(LAYER) and module.in_features == config.hidden_size):
            continue
        writes = is_last(f"{name.removeprefix(LAYER).partition('.')[2]}.weight")
        if not writes and f"{name}.weight" not in readers:
            raise SurgeryError(f"{field}: {name} reads a norm's output only scaled or mixed, or something else.")


def layer_number(name: str) -> int:
    """Of a module in a layer."""
    return int(name.removeprefix(LAYER).partition(".")[0])


def is_down(name: str) -> bool:
    """Whether a tensor of experts writes: its last dimension may be D by chance."""
    return name.startswith("down_proj")


def along(tensor: Tensor, dim: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function` of vectors `[..., D]` on one dimension of a tensor, in float64."""
    return function(tensor.double().movedim(dim, -1)).movedim(-1, dim).to(tensor.dtype).contiguous()
