"""What transformers' own class of a family expects, under the names of the family's files, without allocating it."""

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.core_model_loading import build_glob_alternation, revert_weight_conversion
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .config_bridge import their_config
from .family import Family


def kept_dtypes(raw: dict[str, Any], model_type: str, family: Family, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """{name in its files: dtype} of the tensors that transformers keeps in another dtype when it loads in `dtype`.

    {} where it has no class for them.
    """
    config = their_config(raw, model_type, family)
    name = family.oracle or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if not hasattr(transformers, name or ""):
        return {}
    with torch.device("meta"):
        model = getattr(transformers, name)._from_config(config, dtype=dtype)
    tensors = {name: _as_loaded(name, tensor, model, dtype) for name, tensor in model.state_dict().items()}
    if all(tensor.dtype == dtype for tensor in tensors.values()):
        return {}
    stored = revert_weight_conversion(model, tensors)
    return {name: tensor.dtype for name, tensor in stored.items() if tensor.dtype != dtype}


def _as_loaded(name: str, tensor: Tensor, model, dtype: torch.dtype) -> Tensor:
    """The meta tensor in the dtype that `from_pretrained` gives it."""
    plan = model._get_dtype_plan(dtype)
    if not plan or not tensor.is_floating_point():
        return tensor
    pattern, key_of_group, _ = build_glob_alternation(list(plan))
    found = pattern.search(name)
    return tensor.to(plan[key_of_group[found.lastgroup]]) if found else tensor
