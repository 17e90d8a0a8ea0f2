"""Texts that a model writes while it learns."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments

    from .recipe import SamplesRecipe


class Samples(TrainerCallback):
    """Continues each prompt every `recipe.every` steps and at the end, with the same random numbers each time, and puts
    the texts into samples.jsonl. Training goes on as if it had not."""

    def __init__(
        self,
        recipe: "SamplesRecipe",
        tokenizer: "PreTrainedTokenizerBase",
        path: Path,
        show: bool = True,
        pause: Callable[[float], None] | None = None,
    ):
        """`pause` is told the seconds that it took."""
        self.recipe, self.tokenizer, self.path, self.show = recipe, tokenizer, path, show
        self.pause = pause

    def on_step_end(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        model: "nn.Module | None" = None,
        **kwargs: Any,
    ) -> None:
        every = self.recipe.every
        due = every and (state.global_step % every == 0 or state.global_step == state.max_steps)
        started = time.perf_counter()
        if due and state.is_world_process_zero:
            for prompt in self.recipe.prompts:
                text = write(model, self.tokenizer, prompt, self.recipe)
                line = {"step": state.global_step, "prompt": prompt, "text": text}
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                if self.show:
                    print(f"[{state.global_step}] {prompt}{text}", flush=True)
        if due and self.pause is not None:
            self.pause(time.perf_counter() - started)


@torch.no_grad()
def write(model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", prompt: str, recipe: "SamplesRecipe") -> str:
    """How `model` continues `prompt`; leaves its mode and the random numbers as they were."""
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = begin + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([ids or [tokenizer.eos_token_id]], device=model.device)
    how = (
        {"do_sample": True, "temperature": recipe.temperature, "top_k": 0}
        if recipe.temperature
        else {"do_sample": False}
    )
    was_training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        model.eval()
        tokens = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=recipe.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            **how,
        )
        model.train(was_training)
    return tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
