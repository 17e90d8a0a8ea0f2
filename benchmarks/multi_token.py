"""Self-speculative decoding: how many of the drafts of a model's own prediction layers are taken, and what that gains.

    python -m benchmarks mtp
    python -m benchmarks mtp --steps 400 --layers 12 --hidden-size 512 --depth 3

A model with `--depth` prediction layers is trained for a while on the bundled text, a token being a byte; then it
continues passages that it has not seen, greedily, by itself and with 1 to `--depth` drafts a round. The tokens must be
the same. Acceptance length is new tokens per forward of the model: 1 without drafts, at most drafts + 1. A small model
repeats itself when it is greedy, which is easily foreseen: so acceptance is counted for sampled text, too.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from modeling_zoo import ZooConfig, ZooForCausalLM

CORPUS = Path(__file__).resolve().parent.parent / "examples" / "corpora" / "shakespeare.txt"
LENGTH, PROMPT, PASSAGES = 128, 64, 4


def trained(options: argparse.Namespace) -> tuple[ZooForCausalLM, torch.Tensor, list[float]]:
    """(a model, text that it has not seen `[N, LENGTH]`, the loss of each step)."""
    text = torch.tensor(list(CORPUS.read_bytes()))
    rows = text[: len(text) // LENGTH * LENGTH].view(-1, LENGTH)
    seen, unseen = rows[:-PASSAGES], rows[-PASSAGES:]
    config = ZooConfig(
        vocab_size=256,
        hidden_size=options.hidden_size,
        intermediate_size=4 * options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden_size // 64),
        max_position_embeddings=1024,
        num_mtp_layers=options.depth,
        initializer={"residual_type": "depth"},
    )
    torch.manual_seed(0)
    model = ZooForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameter_groups(0.1), lr=options.learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, max(2, options.steps))
    losses, draws = [], torch.Generator().manual_seed(1)
    for _ in range(options.steps):
        batch = seen[torch.randint(len(seen), (options.batch,), generator=draws)]
        loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model.eval(), unseen, losses


def continued(
    model: ZooForCausalLM, prompts: torch.Tensor, options: argparse.Namespace, drafts: int, sampled: bool = False
) -> dict:
    """All passages continued with so many drafts a round (0: none): tokens, seconds, and tokens per forward of the
    model."""
    torch.manual_seed(2)
    how = {"do_sample": sampled, "max_new_tokens": options.new_tokens, "pad_token_id": 0, "eos_token_id": None}
    how |= {"top_k": 0} if sampled else {}
    whole = model.config.num_mtp_layers
    model.config.num_mtp_layers = drafts or whole
    forwards = []
    hook = model.model.register_forward_hook(lambda *call: forwards.append(1))
    started = time.perf_counter()
    found = [model.generate(prompt[None], **how, **({"use_mtp": True} if drafts else {})) for prompt in prompts]
    seconds = time.perf_counter() - started
    hook.remove()
    model.config.num_mtp_layers = whole
    tokens = torch.cat(found)[:, prompts.shape[1] :]
    # A prompt's forward gives the first token.
    length = (tokens.numel() - len(prompts)) / (len(forwards) - len(prompts))
    return {"tokens": tokens, "seconds": seconds, "acceptance_length": length}


@torch.no_grad()
def measured(model: ZooForCausalLM, prompts: torch.Tensor, options: argparse.Namespace) -> list[dict]:
    """For each number of drafts, 0 first: acceptance length, tokens per second in the best round, as a busy machine
    slows all of them, and whether the tokens are those without drafts."""
    ways = range(options.depth + 1)
    rounds = [[continued(model, prompts, options, drafts) for drafts in ways] for _ in range(options.rounds + 1)]
    results = []
    for drafts in ways:
        runs = [one[drafts] for one in rounds[1:]]
        results.append(
            {
                "drafts": drafts,
                "acceptance_length": runs[0]["acceptance_length"],
                "sampled_acceptance_length": continued(model, prompts, options, drafts, True)["acceptance_length"],
                "tokens_per_second": runs[0]["tokens"].numel() / min(one["seconds"] for one in runs),
                "same_tokens": torch.equal(runs[0]["tokens"], rounds[1][0]["tokens"]),
            }
        )
    return results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depth", type=int, default=3, help="prediction layers")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--new-tokens", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def run(options: argparse.Namespace) -> str:
    """The measurement in words, or as JSON."""
    torch.set_num_threads(options.threads)
    model, unseen, losses = trained(options)
    results = measured(model, unseen[:, :PROMPT], options)
    last = statistics.mean(losses[-20:]) if losses else None
    if options.json:
        return json.dumps({"loss": last, "results": results})
    plain = results[0]["tokens_per_second"]
    lines = [f"{options.layers} layers of {options.hidden_size}, {options.steps} steps, last loss {last:.2f}"]
    for one in results:
        same = "the same tokens" if one["same_tokens"] else "OTHER TOKENS"
        lines.append(
            f"{one['drafts']} drafts: acceptance length {one['acceptance_length']:.2f} "
            f"(sampled {one['sampled_acceptance_length']:.2f}), "
            f"{one['tokens_per_second']:,.0f} tokens/s, {one['tokens_per_second'] / plain:.2f} × without, {same}"
        )
    return "\n".join(lines)
