"""The zoo model family, registered with transformers' Auto classes on import."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from configuration_zoo import ZooConfig

from .modeling_zoo import (
    ZooForCausalLM,
    ZooForQuestionAnswering,
    ZooForSequenceClassification,
    ZooForTokenClassification,
    ZooModel,
    ZooPreTrainedModel,
)
from .platform_kernels import set_use_kernels
from .platform_paged_mla import register_paged_mla
from .platform_peft import lora_targets
from .train_weight_decay import get_decay_parameter_names, parameter_groups

# A model folder's own copy of the code goes without FlashMLA, and without kernels of the Hub for its norms and MLPs.
register_paged_mla()
ZooPreTrainedModel.set_use_kernels = set_use_kernels
AutoConfig.register("zoo", ZooConfig, exist_ok=True)
for auto_class, model_class in (
    (AutoModel, ZooModel),
    (AutoModelForCausalLM, ZooForCausalLM),
    (AutoModelForQuestionAnswering, ZooForQuestionAnswering),
    (AutoModelForSequenceClassification, ZooForSequenceClassification),
    (AutoModelForTokenClassification, ZooForTokenClassification),
):
    auto_class.register(ZooConfig, model_class, exist_ok=True)

__all__ = [
    "ZooConfig",
    "ZooForCausalLM",
    "ZooForQuestionAnswering",
    "ZooForSequenceClassification",
    "ZooForTokenClassification",
    "ZooModel",
    "ZooPreTrainedModel",
    "get_decay_parameter_names",
    "lora_targets",
    "parameter_groups",
]
