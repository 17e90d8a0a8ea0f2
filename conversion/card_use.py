"""How a model is loaded, fine-tuned and served, as its card says it: code that runs as it stands."""

from configuration_zoo import ZooConfig

LOAD = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"  # or its name on the Hub; revision="..." pins the code as well as the weights
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)"""
TUNE = """from peft import LoraConfig, get_peft_model

adapter = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules={modules}{parameters})
model = get_peft_model(model, adapter)
model.print_trainable_parameters()"""
SERVE = """from vllm import LLM

engine = LLM(folder, model_impl="transformers", trust_remote_code=True)
print(engine.generate("Once upon a time")[0].outputs[0].text)"""
# Words of layer_types that vLLM's backend for transformers models has a cache for.
SERVED = {"full_attention", "sliding_attention"}


def use_sections(model, family: str | None) -> list[str]:
    """Three sections: load, fine-tune, serve; of a model without weights."""
    modules, parameters = adapter_targets(model)
    extra = f",\n                     target_parameters={parameters}" if parameters else ""
    tune = TUNE.format(modules=modules, parameters=extra)
    return [
        f"## Load\n\n```python\n{LOAD}\n```\n",
        f"## Fine-tune\n\n```python\n{tune}\n```\n",
        f"## Serve\n\n{serving(model.config, family)}\n",
    ]


def adapter_targets(model) -> tuple[list[str], list[str]]:
    """Last names of the linear layers inside the blocks (not routers), and the fused parameters of the experts."""
    import torch

    layers = model.model.layers
    linear = {name.rpartition(".")[2] for name, part in layers.named_modules() if isinstance(part, torch.nn.Linear)}
    fused = [
        name.partition(".")[2] for name, weight in layers.named_parameters() if ".experts." in name and weight.ndim == 3
    ]
    return sorted(linear), list(dict.fromkeys(fused))


def obstacles(config: ZooConfig) -> list[str]:
    """The flags that vLLM's backend for transformers models cannot run; empty if it can."""
    found = [f"`layer_types` {word}" for word in sorted(set(config.layer_types) - SERVED)]
    if config.position_embedding_type not in ("rope", "none", "learned", "sinusoidal"):
        found.append(f"`position_embedding_type` {config.position_embedding_type}")
    return found


def serving(config: ZooConfig, family: str | None) -> str:
    """vLLM's snippet, or why it cannot and what serves instead."""
    if not (found := obstacles(config)):
        return f"```python\n{SERVE}\n```"
    back = f": `python -m conversion THIS_FOLDER TARGET --to {family}`, then serve TARGET" if family else ""
    return (
        f"vLLM's backend for transformers models does not run {', '.join(found)}. Export to the native family{back}; "
        "`model.generate` and its continuous batching run this folder as it is."
    )
