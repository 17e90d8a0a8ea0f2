"""How a model is loaded, fine-tuned and served, as its card says it: code that runs as it stands."""

from typing import TYPE_CHECKING

from configuration_zoo import ZooConfig
from modeling_zoo.platform_peft import lora_targets
from modeling_zoo.platform_vllm import unsupported_by_vllm

from .heads import HEADS, head_of_own

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOAD = """from transformers import {auto}, AutoTokenizer

folder = "path/to/this/folder"  # or its name on the Hub; revision="..." pins the code as well as the weights
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = {auto}.from_pretrained(folder, trust_remote_code=True)"""
TUNE = """from peft import LoraConfig, get_peft_model

adapter = LoraConfig(task_type="{task}", r=16, {targets})
model = get_peft_model(model, adapter)
model.print_trainable_parameters()"""
SERVE = """from vllm import LLM

engine = LLM(folder, model_impl="transformers", trust_remote_code=True)
print(engine.generate("Once upon a time")[0].outputs[0].text)"""

LATENTS = """

Set `VLLM_MLA_DISABLE=1` in its environment, and vLLM caches keys and values of every head. Where it has kernels for
latents of this width, `hf_overrides={"head_dim": kv_lora_rank + qk_rope_head_dim}` makes it cache those instead."""


def use_sections(model: "PreTrainedModel", family: str | None) -> list[str]:
    """Sections: load, fine-tune, and where it writes text serve; of a model without weights."""
    targets = ",\n                     ".join(f"{key}={names}" for key, names in lora_targets(model).items())
    head = HEADS[head_of_own(model.config)]
    load, tune = LOAD.format(auto=head.auto), TUNE.format(targets=targets, task=head.task)
    return [
        f"## Load\n\n```python\n{load}\n```\n",
        f"## Fine-tune\n\n```python\n{tune}\n```\n",
        *([f"## Serve\n\n{serving(model.config, family)}\n"] if model.can_generate() else []),
    ]


def serving(config: ZooConfig, family: str | None) -> str:
    """vLLM's snippet, or why it cannot and what serves instead."""
    if not (found := [f"`{field}`" for field in unsupported_by_vllm(config)]):
        return f"```python\n{SERVE}\n```" + (LATENTS if "latent" in config.attentions else "")
    back = f": `python -m conversion THIS_FOLDER TARGET --to {family}`, then serve TARGET" if family else ""
    return (
        f"vLLM's backend for transformers models does not support {', '.join(found)} of this model. Convert it to the "
        f"native family{back}; `model.generate` and its continuous batching run this folder as it is."
    )
