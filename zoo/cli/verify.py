"""zoo verify SOURCE TARGET: do two folders hold the same model, and if not, where do they part?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conversion.command import say

from .errors import UserError, blamed_on
from .loading import DEVICE_HELP, HUB_HELP, TRUST_HELP, folder_of, load_model, load_tokenizer, read_config
from .routes import agreement, recorded_routes

if TYPE_CHECKING:
    import torch

# Relative to the largest logit: what the order of float32 sums may change.
TOLERANCE = 2e-5
SOURCE_HELP = f"Folder of the original, {HUB_HELP}: run by transformers' own class."


def verify(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    target: Annotated[str, typer.Argument(help=f"Folder to compare with it, {HUB_HELP}.")],
    prompt: Annotated[str | None, typer.Option(help="Input text. Default: random tokens.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many random tokens.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=0, help="Greedy tokens to compare after them.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the random tokens.")] = 0,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Relative difference that counts as equal.")] = TOLERANCE,
    dtype: Annotated[str, typer.Option(help="Dtype in which both run; auto: as each is stored.")] = "float32",
    device: Annotated[str | None, typer.Option(help=DEVICE_HELP)] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=TRUST_HELP)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
) -> None:
    """Run two models on the same input: largest difference, greedy agreement, first layer that diverges, and how
    often both send a token to the same experts."""
    folders = [folder_of(model, trust_remote_code) for model in (source, target)]
    vocabulary = [vocabulary_of(read_config(folder), folder) for folder in folders]
    input_ids = make_input(folders[0], prompt, tokens, min(vocabulary), seed, trust_remote_code)
    # One after the other: two large models need not fit into memory together.
    options = {"dtype": dtype, "device": device, "trust": trust_remote_code, "original": True}
    ours, theirs = (run(folder, input_ids, new_tokens, options) for folder in folders)
    report = compare(ours, theirs, tolerance)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        show(report)
    raise typer.Exit(0 if report["equal"] else 1)


def vocabulary_of(config: dict, folder: Path) -> int:
    """The number of tokens in a config; raises UserError where it has none."""
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    if not isinstance(size, int) or size < 1:
        raise UserError(f"{folder}/config.json has vocab_size={size!r}, which must be the number of tokens, above 0.")
    return size


def make_input(
    folder: Path, prompt: str | None, tokens: int, vocab_size: int, seed: int, trust: bool
) -> "torch.Tensor":
    """input_ids [1, T]: the prompt, or random ones. Raises UserError for a prompt without tokens."""
    import torch

    if prompt is None:
        return torch.randint(vocab_size, (1, tokens), generator=torch.Generator().manual_seed(seed))
    tokenizer = load_tokenizer(folder, trust)
    with blamed_on(f"the tokenizer of {folder}"):
        input_ids = tokenizer(prompt, return_tensors="pt").input_ids
    if input_ids.shape[1] == 0:
        raise UserError("--prompt has no tokens: give at least one word.")
    return input_ids


def outcome(out: Any) -> "torch.Tensor":
    """Logits; of a model without them what stands in their place."""
    return next(out[name] for name in ("logits", "start_logits", "last_hidden_state") if name in out)


def run(folder: Path, input_ids: "torch.Tensor", new_tokens: int, options: dict) -> dict:
    """Logits, the residual stream after each layer (float32, on the CPU), chosen experts and the greedy continuation of
    one model."""
    import torch

    model = load_model(folder, **options)
    input_ids = input_ids.to(model.device)
    with torch.no_grad():
        with recorded_routes(model, input_ids.numel()) as routes:
            out = model(input_ids, output_hidden_states=True, use_cache=False)
        greedy = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "pad_token_id": 0}
        with blamed_on(f"what {folder} says of generation"):
            longer = model.generate(input_ids, **greedy) if new_tokens and model.can_generate() else input_ids
    return {
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        "logits": outcome(out).float().cpu(),
        "hidden_states": [state.float().cpu() for state in out.hidden_states],
        "routes": routes,
        "tokens": longer[0, input_ids.shape[1] :].tolist(),
    }


def differences(ours: "torch.Tensor", theirs: "torch.Tensor") -> tuple[float | None, float | None]:
    """max |a - b|, and the same relative to max |a|; None where the two cannot be compared (shapes, NaN in one)."""
    if ours.shape != theirs.shape or not (ours.isfinite() == theirs.isfinite()).all():
        return None, None
    scale = ours[ours.isfinite()].abs().max().item() if ours.isfinite().any() else 0.0
    absolute = (ours - theirs)[ours.isfinite()].abs().max().item() if scale else theirs.abs().max().item()
    return absolute, absolute / max(scale, 1e-30)


def within(relative: float | None, tolerance: float) -> bool:
    """Whether a relative difference counts as none."""
    return relative is not None and relative <= tolerance


def compare(ours: dict, theirs: dict, tolerance: float) -> dict:
    """What `zoo verify --json` prints."""
    absolute, relative = differences(ours["logits"], theirs["logits"])
    # Entry 0 is the embedding, entry i the residual stream after layer i - 1; the last one has been through the final
    # norm.
    layers = [differences(a, b)[1] for a, b in zip(ours["hidden_states"], theirs["hidden_states"], strict=False)]
    names = ["embedding", *(f"layer {i}" for i in range(len(layers) - 1))]
    parting = [name for name, value in zip(names, layers, strict=True) if not within(value, tolerance)]
    parting += [] if within(relative, tolerance) else ["head"]
    agreeing = sum(a == b for a, b in zip(ours["tokens"], theirs["tokens"], strict=True))
    return {
        "equal": within(relative, tolerance) and agreeing == len(ours["tokens"]),
        "source": {key: ours[key] for key in ("class", "parameters")},
        "target": {key: theirs[key] for key in ("class", "parameters")},
        "layers": [len(model["hidden_states"]) - 1 for model in (ours, theirs)],
        "largest_absolute_difference": absolute,
        "largest_relative_difference": relative,
        "tolerance": tolerance,
        "greedy_tokens": len(ours["tokens"]),
        "greedy_tokens_equal": agreeing,
        "first_diverging_layer": parting[0] if parting else None,
        "relative_difference_by_layer": dict(zip(names, layers, strict=True)) | {"head": relative},
        "routing": agreement(ours["routes"], theirs["routes"]),
    }


def number(value: float | None) -> str:
    return "not comparable" if value is None else f"{value:.2e}"


def share(value: float | None) -> str:
    return "not comparable" if value is None else f"{value:.1%}"


def show(report: dict) -> None:
    """The same as a few lines of text."""
    for index, side in enumerate(("source", "target")):
        model = report[side]
        say(f"{side}  {model['class']}, {report['layers'][index]} layers, {model['parameters']:,} parameters")
    absolute, relative = (number(report[f"largest_{kind}_difference"]) for kind in ("absolute", "relative"))
    say(f"logits  largest difference {absolute}, relative {relative} (tolerance {report['tolerance']:.0e})")
    say(f"greedy  {report['greedy_tokens_equal']} of {report['greedy_tokens']} tokens equal")
    routing = report["routing"]
    if routing is not None:
        say(f"experts {share(routing['agreement'])} of the choices equal")
    for name, value in report["relative_difference_by_layer"].items():
        mark = "   <- first to diverge" if name == report["first_diverging_layer"] else ""
        routed = f"  experts {share(routing['by_layer'][name])}" if routing and name in routing["by_layer"] else ""
        say(f"  {name:<10} {number(value)}{routed}{mark}")
    say("equal" if report["equal"] else "different")
