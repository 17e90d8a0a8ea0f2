"""Folder to model, and what a folder holds: zoo folders and foreign ones through one gate, no tensor overlooked."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from configuration_zoo import ZooConfig
from description_zoo.heads import model_class

from ..errors import ConversionError, one_line
from ..files.checkpoint import Checkpoint, has_weights
from ..files.sources import read_config, resolve_source
from ..formats.schemes import is_readable, scheme_of
from .config_bridge import import_config
from .incoming import read_incoming
from .registry import OWN_TYPE
from .transfer import parse_dtype
from .zoo_side import check_own, expected_tensors

# What transformers reports after loading, where a model is not what its folder says.
PARTS_AT_RANDOM = ("missing_keys", "mismatched_keys", "error_msgs")
PROBLEMS = (*PARTS_AT_RANDOM, "unexpected_keys")


def load(source: str | Path, dtype: str | torch.dtype | None = None, allow_pickle: bool = False) -> PreTrainedModel:
    """The model of a foreign folder or Hub id (or a zoo folder) straight as zoo's class, every tensor accounted for.

    A ZooForCausalLM, or what `architectures` names: a classifier, a body alone. Pickled weights are opened with
    `allow_pickle` alone, for tensors and nothing else.
    """
    dtype, folder = parse_dtype(dtype), resolve_source(source, allow_pickle=allow_pickle)
    raw = read_config(folder)
    if raw.get("model_type") == OWN_TYPE:
        return _load_own(folder, raw, dtype)
    incoming = read_incoming(folder, raw, dtype, allow_pickle)
    tensors: dict[str, Tensor] = {}
    for step in incoming.plan.steps:
        for name, tensor in step.run(incoming.reader.read):
            tensors[incoming.expected.stored(name)] = tensor.contiguous()
    model, info = model_class(incoming.config).from_pretrained(
        None,
        config=incoming.config,
        state_dict=tensors,
        dtype=incoming.config.dtype or _main_dtype(tensors),
        output_loading_info=True,
    )
    refuse_incomplete(info, folder)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = _generation_settings(folder)
    return model


def _generation_settings(folder: Path) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(folder)
    except (TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ConversionError(f"{folder / 'generation_config.json'} cannot be used: {one_line(error)}") from error


def _load_own(folder: Path, raw: dict[str, Any], dtype: torch.dtype | None) -> PreTrainedModel:
    config = config_of_folder(folder, raw)
    options = {"dtype": dtype or "auto", "use_safetensors": True, "output_loading_info": True}
    model, info = model_class(config).from_pretrained(folder, **options)
    # A library that packs weights stores numbers beside them that no parameter is called after.
    refuse_incomplete(info, folder, PROBLEMS if not raw.get("quantization_config") else PARTS_AT_RANDOM)
    return model


def config_of_folder(folder: Path, raw: dict[str, Any]) -> ZooConfig:
    """The ZooConfig of what a folder holds; raises ConversionError where its weights are not those of such a model.

    A folder without weights is what its config.json says, and so is one whose weights another library has packed.
    """
    packed, scheme = raw.get("quantization_config"), scheme_of(raw, folder)
    if not has_weights(folder) or (scheme and not is_readable(scheme) and raw.get("model_type") != OWN_TYPE):
        return import_config({key: value for key, value in raw.items() if key != "quantization_config"})
    if raw.get("model_type") != OWN_TYPE:
        return read_incoming(folder, raw).config
    config, checkpoint = import_config(raw), Checkpoint(folder, named=raw.get("transformers_weights"))
    if not packed:
        check_own(checkpoint, expected_tensors(config))
    return config


def refuse_incomplete(info: dict[str, Any], folder: Path, problems: tuple[str, ...] = PROBLEMS) -> None:
    """Raises ConversionError where transformers left parts of a model at random, or parts of the files aside."""
    for problem in problems:
        if found := sorted(map(str, info.get(problem) or ())):
            words = problem.removesuffix("_keys").replace("error_msgs", "failing")
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise ConversionError(f"{folder} does not fill its model: {words} {', '.join(found[:5])}{more}.")


def _main_dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    """The dtype of most floating numbers, for a config that does not say."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=counts.get)
