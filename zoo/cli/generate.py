"""zoo generate FOLDER | OWNER/NAME --prompt TEXT."""

import copy
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import UserError, blamed_on
from .loading import DEVICE_HELP, DTYPE_HELP, HUB_HELP, TRUST_HELP, folder_of, load_model, load_tokenizer, open_folder
from .low_bits import check_quantize, in_few_bits

if TYPE_CHECKING:
    from transformers import BatchEncoding, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

# What a terminal takes for a command, not for text.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
MODEL_HELP = f"A zoo folder, a foreign one of a family zoo knows, {HUB_HELP}."
QUANTIZE_HELP = "Round the linear maps for this run, by torchao: int8 halves their memory, int4 also decodes faster."
LENGTH_HELP = "Default: as generation_config.json says, else 100."


def generate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads it from standard input.")],
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help=LENGTH_HELP)] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 decodes greedily, more samples.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Sample from this probability mass.")] = None,
    min_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Drop tokens below this fraction of the best.")
    ] = None,
    repetition_penalty: Annotated[float | None, typer.Option(min=0.0, help="Above 1 penalises repetition.")] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beam search; more than one beam cannot stream.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the sampling.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Apply the folder's chat template to the prompt.")] = False,
    dtype: Annotated[str | None, typer.Option(help=DTYPE_HELP)] = None,
    device: Annotated[str | None, typer.Option(help=DEVICE_HELP)] = None,
    quantize: Annotated[str | None, typer.Option(metavar="int8|int4", help=QUANTIZE_HELP)] = None,
    attn: Annotated[str | None, typer.Option(help="Attention implementation: sdpa, eager, flex_attention ...")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=TRUST_HELP)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of streamed text.")] = False,
) -> None:
    """Continue a text and print it as it is generated. The folder's generation_config.json decides how (greedily
    without one), unless an option says otherwise."""
    check_quantize(quantize)
    options = sampling(temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    further = {"num_beams": num_beams, "max_new_tokens": max_new_tokens, "repetition_penalty": repetition_penalty}
    options |= {name: value for name, value in further.items() if value is not None}
    text = sys.stdin.read() if prompt == "-" else prompt
    folder = folder_of(model, trust_remote_code)
    running, tokenizer = load(folder, attn, dtype=dtype, device=device, trust=trust_remote_code)
    if quantize is not None:
        in_few_bits(running, quantize)
    with blamed_on(f"the {'chat template' if chat else 'tokenizer'} of {folder}"):
        inputs = encode(tokenizer, text, chat).to(running.device)
    with blamed_on(f"what {folder} says of generation"):
        settings = settings_of(running, options)
        answer(running, tokenizer, inputs, settings, seed, as_json)


def sampling(temperature: float | None, **limits: Any) -> dict:
    """Generation options: greedy if asked for, sampled if something only sampling understands was, else as the folder
    says. Raises UserError for options that contradict each other."""
    limits = {name: value for name, value in limits.items() if value is not None}
    if temperature == 0.0 and limits:
        raise UserError(f"--temperature 0 is greedy decoding, which {', '.join(limits)} cannot change.")
    if temperature is None and not limits:
        return {}
    if not limits and not temperature:
        return {"do_sample": False}
    return {"do_sample": True} | limits | ({"temperature": temperature} if temperature else {})


def settings_of(model: "PreTrainedModel", options: dict) -> "GenerationConfig":
    """The folder's generation settings as `options` change them."""
    settings = copy.deepcopy(model.generation_config)
    settings.update(**options)
    if settings.do_sample and settings.top_k is None:
        # Zero means all to transformers: without it its default of 50 would cut silently.
        settings.top_k = 0
    if settings.max_new_tokens is None and settings.max_length is None:
        settings.max_new_tokens = 100
    return settings


def load(
    folder: Path, attn: str | None, trust: bool, **options: Any
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """-> model and tokenizer; what is wrong with the folder is found before any weight is read. Raises UserError for a
    model that does not generate text."""
    open_folder(folder, trust)
    tokenizer = load_tokenizer(folder, trust)
    model = load_model(folder, trust=trust, **options)
    if not model.can_generate():
        raise UserError(f"{folder} holds a {type(model).__name__}, which does not generate text.")
    if attn is not None:
        model.set_attn_implementation(attn)
    return model, tokenizer


def encode(tokenizer: "PreTrainedTokenizerBase", prompt: str, chat: bool) -> "BatchEncoding":
    """Text -> input_ids and attention_mask [1, T]; raises UserError for an empty prompt or a missing template."""
    if not chat:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    elif tokenizer.chat_template is None:
        raise UserError("--chat needs a chat template, and this folder's tokenizer has none.")
    else:
        turn = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    if inputs["input_ids"].shape[1] == 0:
        raise UserError("--prompt has no tokens: give at least one word.")
    return inputs


def answer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    inputs: "BatchEncoding",
    settings: "GenerationConfig",
    seed: int | None,
    as_json: bool,
) -> None:
    """Generate, and print the whole text: while it comes if it can, else at the end."""
    import torch

    if seed is not None:
        torch.manual_seed(seed)
    streams = settings.num_beams in (None, 1) and not as_json
    streamer = streamer_of(tokenizer) if streams else None
    started = time.perf_counter()
    # The tokenizer is what finds stop strings.
    tokens = model.generate(**inputs, streamer=streamer, generation_config=settings, tokenizer=tokenizer)[0].tolist()
    seconds = time.perf_counter() - started
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    if as_json:
        prompt_tokens = inputs["input_ids"].shape[1]
        new = {"prompt_tokens": prompt_tokens, "new_tokens": len(tokens) - prompt_tokens, "seconds": round(seconds, 3)}
        line = json.dumps({"text": text, "tokens": tokens} | new, ensure_ascii=False)
        typer.echo(CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], line))
    elif not streams:
        typer.echo(CONTROL.sub("", text))


def streamer_of(tokenizer: "PreTrainedTokenizerBase") -> "TextStreamer":
    """Prints text as it comes, without control characters: a model must not command a terminal."""
    from transformers import TextStreamer

    class Printer(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            super().on_finalized_text(CONTROL.sub("", text), stream_end)

    return Printer(tokenizer, skip_special_tokens=True)
