"""The model card of a converted folder: what the config and the tensors say, nothing else."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from configuration_zoo import ZooConfig

from .companions import CARD
from .config_bridge import architecture
from .sidecar import FOLDER, Manifest

_FRONT = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
_LOAD = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)"""


def write_card(folder: Path, config: ZooConfig, manifest: Manifest, parameters: int) -> None:
    """Writes README.md: sizes, the flags that differ from zoo's defaults, how to load, where it came from."""
    lines = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- zoo\n---\n",
        f"# A {manifest.model_type} checkpoint as a zoo model\n",
        f"{parameters:,} parameters, dtype {str(config.dtype).removeprefix('torch.')}. {_fidelity(manifest)}\n",
        _table("Size", {name: _size(config, name) for name in _FRONT}),
        "## Flags\n\nWhat this model sets differently from `ZooConfig()`:\n",
        _table("Flag", _differing_flags(config)),
        f"## Loading\n\n```python\n{_LOAD}\n```\n",
        _source_note(folder, manifest),
    ]
    (folder / CARD).write_text("\n".join(lines), encoding="utf-8")


def _fidelity(manifest: Manifest) -> str:
    back = f"`python -m conversion THIS_FOLDER TARGET --to {manifest.model_type}`"
    if manifest.cast:
        return f"The tensors are those of the source, cast to {manifest.cast} and rearranged; {back} goes back."
    return f"The tensors are those of the source, rearranged without loss; {back} restores them bit for bit."


def _size(config: ZooConfig, name: str) -> Any:
    """A size of the model, or the list over its layers where they differ in it."""
    values = [getattr(layer, name, None) for layer in config.per_layer_config]
    return values if any(value != values[0] for value in values) else values[0]


def _differing_flags(config: ZooConfig) -> dict[str, Any]:
    # Per-layer lists follow the depth, so the defaults are those of a model of this depth.
    default = architecture(ZooConfig(num_hidden_layers=config.num_hidden_layers))
    ours = architecture(config)
    order = [field.name for field in fields(ZooConfig) if field.name in ours]
    return {name: ours[name] for name in order if ours[name] != default.get(name) and name not in _FRONT}


def _table(title: str, rows: dict[str, Any]) -> str:
    lines = [f"| {title} | value |", "|---|---|", *(f"| `{name}` | {_short(value)} |" for name, value in rows.items())]
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    """A value for a table cell; a per-layer list as runs, `3 x sliding_attention, 1 x full_attention`."""
    if not isinstance(value, list) or len(value) < 4:
        return f"`{value}`"
    runs: list[list] = []
    for entry in value:
        if runs and runs[-1][1] == entry:
            runs[-1][0] += 1
        else:
            runs.append([1, entry])
    text = ", ".join(f"{count} × {entry}" for count, entry in runs[:12])
    return text + (" ..." if len(runs) > 12 else "")


def _source_note(folder: Path, manifest: Manifest) -> str:
    licences = sorted(path.name for path in folder.iterdir() if path.name.startswith(("LICENSE", "LICENCE", "NOTICE")))
    note = f"## Source\n\nConverted from a `{manifest.model_type}` checkpoint; its licence applies to these weights"
    note += (
        f" ({', '.join(f'`{name}`' for name in licences)})."
        if licences
        else " (the source folder had no licence file)."
    )
    if (folder / FOLDER / CARD).is_file():
        note += f" Its own card is `{FOLDER}/{CARD}`."
    if manifest.kept:
        note += (
            f" {len(manifest.kept)} tensors that zoo does not use are kept in `{FOLDER}/` for the way back: "
            + ", ".join(f"`{name}`" for name in manifest.kept[:5])
            + (" ..." if len(manifest.kept) > 5 else ".")
        )
    return note + "\n"
