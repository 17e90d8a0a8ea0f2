"""The model card of a zoo folder: what the config and the tensors say, nothing else."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from configuration_zoo import ZooConfig
from configuration_zoo.field_settings import described

from .architecture import architecture
from .card_origin import (
    CARD,
    Origin,
    carried_over,
    converted_from,
    descended,
    front_matter,
    needs_note,
    origin_of,
    source_note,
)
from .card_use import use_sections
from .foreign_text import code_span, is_slug, printable
from .heads import HEADS, head_of_own
from .kinds import named_fields
from .measure import empty_model, layer_runs, measure, repetitions
from .picture import architecture_svg

PICTURE = "architecture.svg"
_TEMPLATE = "This model card has been automatically generated"
_FRONT = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")


def write_card(folder: Path, config: ZooConfig, origin: Origin) -> None:
    """README.md and its picture for a converted folder: sizes, layers, flags, use, and where it came from."""
    fidelity = f"Weights in {_dtype(config)}. {_fidelity(origin)} {needs_note()}"
    lines = [
        front_matter(converted_from(origin, carried_over(folder)), HEADS[head_of_own(config)].pipeline),
        f"# A {origin.model_type} checkpoint as a zoo model\n\n{fidelity}\n",
        *_description(folder, config, origin.model_type),
        source_note(folder, origin),
    ]
    ModelCard("\n".join(lines)).save(folder / CARD)


def write_plain_card(folder: Path, config: ZooConfig, origin: Path | None = None) -> None:
    """The same for a model that was made or trained with zoo; `origin` is the folder it started from, if any."""
    family = known_source(config)
    started = f" It has the architecture of a `{family}` checkpoint." if family else ""
    lines = [
        front_matter(descended(origin, carried_over(origin)), HEADS[head_of_own(config)].pipeline),
        f"# A zoo model\n\nWeights in {_dtype(config)}.{started} {needs_note()}\n",
        *_description(folder, config, family),
    ]
    ModelCard("\n".join(lines)).save(folder / CARD)


def known_source(config: ZooConfig) -> str | None:
    """The family a model came from, None where that is no plain name: a command line is made from it."""
    family = (config.source_config or {}).get("model_type")
    return family if is_slug(family) else None


def replace_empty_card(folder: str | Path, config: ZooConfig) -> None:
    """A card in place of the template that transformers' `push_to_hub` fills with nothing; any other card stays."""
    card = Path(folder) / CARD
    if card.is_file() and _TEMPLATE in card.read_text(encoding="utf-8"):
        write_plain_card(Path(folder), config, origin_of(config))


def _description(folder: Path, config: ZooConfig, family: str | None) -> list[str]:
    model = empty_model(config)
    report = measure(config, model)
    (folder / PICTURE).write_text(architecture_svg(report), encoding="utf-8")
    return [
        _table("Size", {name: _size(config, name) for name in _FRONT}),
        f"## Architecture\n\n![the layers from tokens to logits]({PICTURE})\n\n{_layers(report)}\n{_costs(report)}\n",
        "## Flags\n\nWhat this model sets differently from `ZooConfig()`:\n",
        _table("Flag", _differing_flags(config)),
        *use_sections(model, family),
    ]


def _dtype(config: ZooConfig) -> str:
    return str(config.dtype or "bfloat16").removeprefix("torch.")


def _fidelity(origin: Origin) -> str:
    back = f"`python -m conversion THIS_FOLDER TARGET --to {origin.model_type}`"
    if origin.cast:
        return f"The tensors are those of the source, cast to {origin.cast} and rearranged; {back} goes back."
    return f"The tensors are those of the source, rearranged without loss; {back} restores them bit for bit."


def _layers(report: dict) -> str:
    """One row for each run of layers that differ in nothing; those that repeat together stand there once."""
    lines = [
        "| layers | mixer | context | positions | and | residual, norm | MLP | parameters each | cache bytes / token |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for times, runs in repetitions(list(layer_runs(report["layers"]))):
        for first, last, layer in runs:
            where = str(first) if first == last else f"{first}-{last}"
            if times > 1:
                period = runs[-1][1] - runs[0][0] + 1
                where += f", {times} times, every {period}"
            also = [*layer["features"], *named_fields(layer)]
            words = [layer["mixer"], layer["context"], layer["positions"], ", ".join(also), layer["residual"]]
            numbers = f"{layer['parameters']:,} | {layer['cache_bytes_per_token']:,}"
            lines.append(f"| {where} | {' | '.join(words)} | {layer['mlp']} | {numbers} |")
    return "\n".join(lines) + "\n"


def _costs(report: dict) -> str:
    total, active, least = (report[f"{kind}parameters"] for kind in ("", "active_", "least_active_"))
    of_a_token = f"{active:,}" if least == active else f"{least:,} to {active:,}"
    text = f"{total:,} parameters{f', {of_a_token} of them active per token' if active != total else ''}. "
    if report["prediction_parameters"]:
        text += f"{report['prediction_parameters']:,} are in layers that predict further tokens. "
    text += f"The cache takes {report['cache_bytes_per_token']:,} bytes per token in {report['dtype']}"
    for part, words in (("window_bytes", "for windows, once they are full"), ("state_bytes", "of state")):
        text += f", and {report[part]:,} bytes {words}" if report[part] else ""
    full = report["cache_bytes_at_full_length"]
    return text + f": {full:,} bytes at {report['max_position_embeddings']:,} tokens."


def _size(config: ZooConfig, name: str) -> Any:
    """A size of the model, or the list over its layers where they differ in it."""
    values = [getattr(layer, name, None) for layer in config.per_layer_config]
    return values if any(value != values[0] for value in values) else values[0]


def _differing_flags(config: ZooConfig) -> dict[str, Any]:
    # Per-layer lists follow the depth, so the defaults are those of a model of this depth.
    default = architecture(ZooConfig(num_hidden_layers=config.num_hidden_layers))
    ours = architecture(config)
    order = [name for name in described(ZooConfig) if name in ours]
    return {name: ours[name] for name in order if ours[name] != default.get(name) and name not in _FRONT}


def _table(title: str, rows: dict[str, Any]) -> str:
    lines = [f"| {title} | value |", "|---|---|", *(f"| `{name}` | {_short(value)} |" for name, value in rows.items())]
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    """A value for a table cell; a per-layer list as runs, `3 x sliding_attention, 1 x full_attention`."""
    if not isinstance(value, list) or len(value) < 4:
        return code_span(value)
    runs: list[list] = []
    for entry in value:
        if runs and runs[-1][1] == entry:
            runs[-1][0] += 1
        else:
            runs.append([1, entry])
    text = ", ".join(f"{count} × {entry}" for count, entry in runs[:12])
    return printable(text + (" ..." if len(runs) > 12 else ""))
