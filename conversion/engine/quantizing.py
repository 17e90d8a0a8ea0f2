"""Which matrices of a model on its way out are stored in eight bits: those that every reader computes with alike.

Projections and experts. Norms, biases, embeddings, heads, routers and what goes along from the source stay as they are,
and so do matrices with a side that is no multiple of a block: vLLM wants whole groups of 128 inputs and whole blocks
where it joins matrices, and transformers, without a GPU, takes other blocks for partial ones.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from configuration_zoo import ZooConfig
from description_zoo.heads import BODY, head_of_own
from modeling_zoo.mlp_experts import Experts

from ..errors import ConversionError
from ..formats.fp8_block import BLOCK, Fp8Block, stored_alike
from ..formats.kept_quantized import KeptQuantized
from ..formats.storage import packed_as
from .registry import OWN_TYPE, family_of, spoken
from .their_side import linear_weights
from .zoo_side import BODY_PREFIX, empty_model

if TYPE_CHECKING:
    from .outgoing import Outgoing

SCHEMES = (Fp8Block.method,)
# vLLM joins these in one matrix, which is stored in one way.
_JOINED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
)
# Small projections that published checkpoints, and vLLM, keep as they are.
_KEPT_PLAIN = ("weights_proj", "eh_proj")
_EXPERTS = re.compile(r"(.*\.experts)\..*")


def family_to_write(folder: Path, raw: dict[str, Any], to: str | None, quantize: str) -> str:
    """`to`, or the family that a source with this config.json comes from. Raises ConversionError for an unknown scheme,
    a source that is quantised already, or one that comes from no family."""
    if quantize not in SCHEMES:
        raise ConversionError(f"quantize={quantize!r} is no scheme that is written here: write {', '.join(SCHEMES)}.")
    if raw.get("model_type") != OWN_TYPE and (words := packed_as(folder, raw)):
        raise ConversionError(
            f"{folder} is quantised already ({words}), and what is rounded twice loses twice: write {quantize} from "
            "the weights it was made from."
        )
    own = raw if raw.get("model_type") != OWN_TYPE else raw.get("source_config") or {}
    if to is None and own.get("model_type") is None:
        raise ConversionError(f"{folder} comes from no family: name the one to write in {quantize} with --to (to=).")
    return to or own["model_type"]


def quantized(outgoing: "Outgoing") -> KeptQuantized | Fp8Block:
    """How a planned export is written in eight bits: as the stored tensors that its folder has kept, where they are in
    the same scheme. Raises ConversionError where no matrix can be."""
    kept = outgoing.extras.quantized
    if kept is not None and stored_alike(kept.said["scheme"]):
        return kept
    outputs, ours = outgoing.outputs(), linear_here(outgoing.config)
    chosen = _whole(_matrices(outgoing, ours), outputs)
    if not chosen:
        raise ConversionError(
            f"nothing of this {spoken(outgoing.to)} can be stored in {Fp8Block.method}, which takes projections whose "
            f"sides are multiples of {BLOCK[0]}, each in a tensor of its own."
        )
    plain = {name: tensor for name, tensor in outputs.items() if name not in chosen}
    modules = {module for name, tensor in plain.items() if (module := _module(name, tensor))}
    heads = {outgoing.planner.their_names(name).removesuffix(".weight") for name in _heads(outgoing.config)}
    return Fp8Block(frozenset(chosen), tuple(sorted(modules | heads)))


def linear_here(config: ZooConfig) -> set[str]:
    """Names of the weights of all projections and experts in the body of zoo's own model."""
    found = set()
    for name, module in empty_model(config).named_modules():
        if type(module) is nn.Linear:
            found.add(f"{name}.weight")
        elif isinstance(module, Experts):
            found |= {f"{name}.{word}" for word, one in module.named_parameters(recurse=False) if one.dim() == 3}
    if head_of_own(config) == BODY:
        return {BODY_PREFIX + name for name in found}
    return {name for name in found if name.startswith(BODY_PREFIX)}


def _heads(config: ZooConfig) -> list[str]:
    """Names of the matrices beside the body of zoo's own model, those included that share their numbers with it."""
    if head_of_own(config) == BODY:
        return []
    parameters = empty_model(config).named_parameters(remove_duplicate=False)
    return [name for name, one in parameters if one.dim() > 1 and not name.startswith(BODY_PREFIX)]


def _matrices(outgoing: "Outgoing", ours: set[str]) -> set[str]:
    """Names in the target of what is a projection or an expert here and there, on both sides in whole blocks."""
    planner, headers = outgoing.planner, outgoing.reader.headers
    family, head = family_of(outgoing.to), head_of_own(outgoing.config)
    theirs = linear_weights(outgoing.raw, outgoing.to, family, head)
    known = None if theirs is None else {planner.as_ruled(name) for name in theirs}
    found = set()
    for step in outgoing.plan.steps:
        sources = step.source_names()
        if set(sources) <= ours and all(_in_whole_blocks(headers[name]) for name in sources):
            found |= {name for name in step.target_names() if known is None or planner.as_ruled(name) in known}
    outputs = outgoing.plan.outputs
    found = {name for name in found if name.endswith(".weight") and outputs[name].dim() == 2}
    return {name for name in found if _in_whole_blocks(outputs[name]) and _last_word(name) not in _KEPT_PLAIN}


def _in_whole_blocks(matrix: Tensor) -> bool:
    """Whether the sides of a matrix, or of each in a stack, are multiples of a block."""
    return all(side and side % block == 0 for side, block in zip(matrix.shape[-2:], BLOCK, strict=True))


def _whole(chosen: set[str], outputs: dict[str, Tensor]) -> set[str]:
    """Without the matrices that readers join with a tensor that is not chosen: parts of one projection, and experts."""
    experts = {match[1] for name in outputs.keys() - chosen if (match := _EXPERTS.fullmatch(name))}
    torn = {name for name in chosen if (match := _EXPERTS.fullmatch(name)) and match[1] in experts}
    for name in chosen:
        module, _, word = name.removesuffix(".weight").rpartition(".")
        joined = next((words for words in _JOINED if word in words), ())
        others = {f"{module}.{other}.weight" for other in joined} & outputs.keys()
        torn |= others if others - chosen else set()
    return chosen - torn


def _module(name: str, tensor: Tensor) -> str | None:
    """The module of a plain matrix, as readers want it listed: all experts of a layer are one."""
    if experts := _EXPERTS.fullmatch(name):
        return experts[1]
    return name.removesuffix(".weight") if tensor.dim() > 1 and name.endswith(".weight") else None


def _last_word(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]
