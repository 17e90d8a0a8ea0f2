"""zoo families [MODEL_TYPE]: what can be converted, and what it sets."""

import json
import re
from typing import Annotated, Any

import typer

from conversion.command import say

# Flags whose values are names that speak for themselves.
NAMING = (
    "attention_type",
    "layer_types",
    "linear_attention_type",
    "position_embedding_type",
    "norm_type",
    "block_type",
)
TELLING = (
    *NAMING, "num_experts", "zero_expert_num", "index_topk", "qk_norm", "attention_sinks", "attn_output_gate",
    "attn_logit_softcapping", "no_rope_layers", "num_kv_shared_layers", "hidden_size_per_layer_input", "hc_mult",
)  # fmt: skip


def families(
    name: Annotated[str | None, typer.Argument(help="A model_type. Default: list all families.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
) -> None:
    """List the families of checkpoints that convert there and back, or describe one: models, concepts, formats."""
    from conversion.command import quiet
    from conversion.engine.catalog import catalog, facts

    quiet()
    if name is not None:
        found = {"model_type": name} | facts(name)
        typer.echo(json.dumps(found)) if as_json else describe(found)
        return
    found = catalog()
    typer.echo(json.dumps(found)) if as_json else show(found)


def describe(found: dict[str, Any]) -> None:
    """One family in a few lines."""
    say(f"{found['model_type']}: {found['models']}")
    if found["wrapper"]:
        say("  the text model inside a larger one, whose other tensors are kept for converting back")
    for flag, value in found["concepts"].items():
        say(f"  {flag} = {' | '.join(map(str, value)) if isinstance(value, list) else value}")


def show(found: dict[str, Any]) -> None:
    """A row for each, then what holds for all of them."""
    from .tables import print_table

    rows = [
        (name, "around" if facts["wrapper"] else "", title(facts["models"]), ", ".join(words(facts["concepts"])))
        for name, facts in found["families"].items()
    ]
    print_table(("model_type", "wrapper", "models", "concepts"), rows)
    say(f"{len(rows)} families. Also the text model in: {', '.join(found['wrappers'])}.")
    say(f"Weights may be stored as {', '.join(found['formats'])}.")


def title(models: str) -> str:
    """The names alone, without where they were published."""
    return re.split(r" \(|: |[:.]$", models)[0]


def words(concepts: dict[str, Any]) -> list[str]:
    """What tells families apart, in few words: the name where a flag takes one, else the flag."""
    found = []
    for flag in TELLING:
        value = concepts.get(flag)
        values = value if isinstance(value, list) else [value]
        found += ["NoPE" if one == "none" else one for one in values if flag in NAMING and one]
        found += [flag] if value and flag not in NAMING else []
    return list(dict.fromkeys(found))
