"""The card of an adapter: what it adapts, how it is loaded, merged, and taken to the family its base came from."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open

from configuration_zoo import ZooConfig

from .card import known_source
from .card_origin import CARD, carried_over, noted_repository, repository_of
from .foreign_text import code_span, is_slug

SETTINGS, WEIGHTS, TOKENIZER = "adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"
_TEMPLATE = "# Model Card for Model ID"
# PEFT's name of a kind -> how people call it.
KINDS = {"LORA": "LoRA", "IA3": "IA3", "PROMPT_TUNING": "prompt tuning", "PREFIX_TUNING": "prefix tuning"}
IN_FRONT = ("PROMPT_TUNING", "PREFIX_TUNING")
TASKS = {"CAUSAL_LM": "text-generation", "SEQ_CLS": "text-classification", "TOKEN_CLS": "token-classification"}

LOAD = """from peft import {auto}
from transformers import AutoTokenizer

adapter = "path/to/this/folder"  # or its name on the Hub
model = {auto}.from_pretrained(adapter, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained({tokenizer}, trust_remote_code=True)"""
WHERE = """The base is a folder: set `base_model_name_or_path` in `adapter_config.json` to where it is, or to its name
on the Hub.

"""
MERGE = """merged = model.merge_and_unload()
merged.save_pretrained("merged")
tokenizer.save_pretrained("merged")"""
BACK = """The merged folder is a zoo folder like any other; `zoo convert merged back --to {family}` makes a `{family}`
checkpoint of it."""


def is_blank_card(text: str) -> bool:
    """Whether a card is PEFT's template, in which nothing is filled in."""
    return _TEMPLATE in text and "[More Information Needed]" in text


def write_adapter_card(folder: str | Path, target: Path | None = None) -> None:
    """README.md for a folder that PEFT's `save_pretrained` has written, in place of the template it leaves there, or in
    the folder `target`.

    Raises ValueError for a folder without adapter_config.json or adapter_model.safetensors, or one that cannot be read.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    base = _base(settings)
    title = f"# {_article(_kind(settings))} {_kind(settings)} for {_base_name(base)}\n"
    parts = [_front_matter(settings, base), title, _numbers(folder, settings), *_use(folder, settings, base)]
    ModelCard("\n".join(parts)).save((target or folder) / CARD)


def read_settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises ValueError where it or the weights are not there, or it is no JSON object."""
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: save the adapter there with PEFT's save_pretrained.")
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{folder / SETTINGS} is not a JSON object: save the adapter again.")
    return settings


def _base(settings):
    """What is known of the base: "name", its repository or the one it was converted from; "named", whether that is what
    the adapter asks for; "folder"; "zoo", whether it is a zoo model; "family", what that was converted from."""
    from huggingface_hub import try_to_load_from_cache

    named = str(settings.get("base_model_name_or_path") or "")
    base = {"named": is_slug(named) and named.count("/") == 1, "folder": Path(named), "name": named}
    if named and Path(named).is_dir():
        repository = repository_of(Path(named)).get("repository")
        base |= {"named": bool(repository), "name": repository or noted_repository(Path(named))}
    elif base["named"]:
        config = try_to_load_from_cache(named, "config.json")
        base["folder"] = Path(config).parent if isinstance(config, str) else None
    else:
        base |= {"folder": None, "name": None}
    content = _config(base["folder"])
    base["zoo"] = content.get("model_type") == "zoo"
    return base | {"family": known_source(ZooConfig.from_dict(content)) if base["zoo"] else None}


def _config(folder):
    """config.json of a folder, {} where there is none that can be read."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder is not None else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _base_name(base):
    if base["named"]:
        return code_span(base["name"])
    if not base["zoo"]:
        return "a model"
    return f"a zoo model converted from a {code_span(base['family'])} checkpoint" if base["family"] else "a zoo model"


def _article(word):
    return "An" if word[0] in "AEIOU" else "A"


def _kind(settings):
    kind = str(settings.get("peft_type"))
    if kind == "LORA" and settings.get("use_dora"):
        return "DoRA"
    return KINDS.get(kind, kind if is_slug(kind) else "adapter")


def _front_matter(settings, base):
    carried = carried_over(base["folder"])
    tags = [*(["zoo", "custom_code"] if base["zoo"] else []), _kind(settings).lower().replace(" ", "-")]
    content = {"library_name": "peft", "tags": tags}
    content |= {"pipeline_tag": TASKS.get(settings.get("task_type"))} if settings.get("task_type") in TASKS else {}
    if base["name"]:
        carried["base_model"] = base["name"]
    if carried.get("base_model"):
        carried["base_model_relation"] = "adapter"
    return f"---\n{ModelCardData(**content | carried).to_yaml()}\n---\n"


def _numbers(folder, settings):
    with safe_open(folder / WEIGHTS, framework="pt") as tensors:
        parts = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118
    learned = sum(_product(part.get_shape()) for part in parts)
    dtypes = Counter(part.get_dtype() for part in parts)
    rows = {"numbers stored": f"{learned:,} in {', '.join(sorted(dtypes))}"}
    for field, words in _SHOWN.items():
        if settings.get(field):
            rows[words] = _words(settings[field])
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


_SHOWN = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "linear maps",
    "target_parameters": "parameters of experts and grouped maps",
    "modules_to_save": "trained whole",
    "trainable_token_indices": "rows of the token table",
    "num_virtual_tokens": "learned tokens",
}


def _words(value):
    if isinstance(value, dict):
        value = [number for numbers in value.values() for number in numbers]
    if isinstance(value, list):
        shown = ", ".join(map(code_span, sorted(value, key=str)[:12]))
        return shown + (f" and {len(value) - 12} more" if len(value) > 12 else "")
    return code_span(value) if isinstance(value, str) else str(value)


def _product(shape):
    number = 1
    for size in shape:
        number *= size
    return number


def _use(folder, settings, base):
    classifies = settings.get("task_type") == "SEQ_CLS"
    auto = "AutoPeftModelForSequenceClassification" if classifies else "AutoPeftModelForCausalLM"
    tokenizer = (
        "adapter"
        if (folder / TOKENIZER).is_file()
        else json.dumps(base["name"] if base["named"] else "path/to/the/base")
    )
    where = "" if base["named"] else WHERE
    parts = [f"## Load\n\n{where}```python\n{LOAD.format(auto=auto, tokenizer=tokenizer)}\n```\n"]
    if settings.get("peft_type") not in IN_FRONT:
        back = BACK.format(family=base["family"]) + "\n" if base["family"] else ""
        parts.append(f"## Merge\n\n```python\n{MERGE}\n```\n\n{back}")
    return parts
