"""What transformers' own class of a family expects, under the names of the family's files, without allocating it."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import build_glob_alternation, revert_weight_conversion

from configuration_zoo import ZooConfig
from description_zoo.heads import BODY, CAUSAL, HEADS, head_of_own

from ..errors import ConversionError
from .family import Family
from .plan import Planner
from .registry import family_of
from .their_config import their_config


def their_model(
    raw: dict[str, Any], model_type: str, family: Family, dtype: torch.dtype, head: str = CAUSAL
) -> PreTrainedModel | None:
    """Transformers' own model of a config.json without weights; None where it has no class of this kind."""
    config = their_config(raw, model_type, family)
    name = family.oracle if head == CAUSAL and family.oracle else HEADS[head].class_for(config.model_type)
    if not hasattr(transformers, name or ""):
        return None
    with torch.device("meta"):
        return getattr(transformers, name)._from_config(config, dtype=dtype)


def planner_for(raw: dict[str, Any], model_type: str, config: ZooConfig) -> Planner:
    """The planner for a config.json and its ZooConfig, whichever head the model has. Raises ConversionError for a head
    that transformers has no class for."""
    family, head = family_of(model_type), head_of_own(config)
    if head in (CAUSAL, BODY):
        return Planner(family, config, body=head == BODY)
    model = their_model(raw, model_type, family, torch.float32, head)
    if model is None:
        raise ConversionError(
            f"transformers has no {HEADS[head].ending} class of {model_type}: such a model cannot be converted."
        )
    prefix = f"{model.base_model_prefix}."
    around = {} if prefix == family.base_prefix else {prefix: family.base_prefix}
    if any(name.startswith("classifier.") for name in model.state_dict()):
        around |= {"classifier.": "score."}
    return Planner(family, config, around)


def kept_dtypes(
    raw: dict[str, Any], model_type: str, family: Family, dtype: torch.dtype, head: str = CAUSAL
) -> dict[str, torch.dtype]:
    """{name in its files: dtype} of the tensors that transformers keeps in another dtype when it loads in `dtype`.

    {} where it has no class for them.
    """
    model = their_model(raw, model_type, family, dtype, head)
    if model is None:
        return {}
    tensors = {name: _as_loaded(name, tensor, model, dtype) for name, tensor in model.state_dict().items()}
    if all(tensor.dtype == dtype for tensor in tensors.values()):
        return {}
    stored = revert_weight_conversion(model, tensors)
    return {name: tensor.dtype for name, tensor in stored.items() if tensor.dtype != dtype}


def linear_weights(raw: dict[str, Any], model_type: str, family: Family, head: str = CAUSAL) -> frozenset[str] | None:
    """Names in its files of what transformers computes by an nn.Linear or by experts; None where it has no class."""
    model = their_model(raw, model_type, family, torch.float32, head)
    if model is None:
        return None
    modules = dict(model.named_modules())
    linear = {f"{name}.weight" for name, module in modules.items() if type(module) is nn.Linear}
    found = {name: one for name, one in model.state_dict().items() if name in linear or ".experts." in name}
    return frozenset(revert_weight_conversion(model, found))


def _as_loaded(name: str, tensor: Tensor, model, dtype: torch.dtype) -> Tensor:
    """The meta tensor in the dtype that `from_pretrained` gives it."""
    plan = model._get_dtype_plan(dtype)
    if not plan or not tensor.is_floating_point():
        return tensor
    pattern, key_of_group, *_ = build_glob_alternation(list(plan))
    found = pattern.search(name)
    return tensor.to(plan[key_of_group[found.lastgroup]]) if found else tensor
