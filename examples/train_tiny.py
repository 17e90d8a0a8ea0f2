"""Train a tiny model from nothing on Shakespeare, with any flags, and draw its loss.

    python examples/train_tiny.py
    python examples/train_tiny.py --set num_experts=8 --set num_experts_per_tok=2 --set router_aux_loss_coef=0.01
    python examples/train_tiny.py --set attention_type=latent --set kv_lora_rank=32 --set qk_rope_head_dim=16 \
        --set qk_nope_head_dim=32 --set v_head_dim=32
    python examples/train_tiny.py --compare

A token is a byte, the trainer is transformers' own. `--compare` trains three gated delta nets to one full attention
layer (gated, without positions) beside transformers' LlamaForCausalLM of the same number of parameters on the same
batches.
Everything goes into --output: the model, losses.json, loss.png.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from command_line import run
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging

from modeling_zoo import ZooConfig, ZooForCausalLM

CORPUS = Path(__file__).resolve().parent / "corpora" / "shakespeare.txt"
SIZES = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 336,
    "initializer": {"residual_type": "depth"},
}
HYBRID = {
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_attention_type": "gated_delta_net",
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 24,
    "linear_value_head_dim": 32,
    "position_embedding_type": "none",
    "attn_output_gate": "query",
}


# Rows of text that is never trained on.
HELD_OUT = 48


class Blocks(torch.utils.data.Dataset):
    """A text cut into blocks of `length` bytes, the first `most` of them."""

    def __init__(self, text: bytes, length: int, most: int | None = None):
        count = min(len(text) // length, most or len(text))
        self.rows = torch.tensor(list(text[: count * length])).view(count, length)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def parse_flag(text: str) -> tuple[str, object]:
    """`name=value`, the value JSON if it is any, else a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"--set {text}: write it as flag=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, {"True": True, "False": False, "None": None}.get(value, value)


def llama_of_size(count: int) -> LlamaForCausalLM:
    """transformers' plain Llama whose MLP is as wide as brings its parameters closest to `count`."""

    def build(inner: int) -> LlamaForCausalLM:
        shape = {name: size for name, size in SIZES.items() if name != "initializer"}
        return LlamaForCausalLM(LlamaConfig(**shape | {"intermediate_size": inner, "max_position_embeddings": 4096}))

    fixed, one_more = (build(inner).num_parameters() for inner in (8, 9))
    return build(8 + round((count - fixed) / (one_more - fixed)))


def train(model, data: Blocks, held_out: Blocks, options: argparse.Namespace) -> dict:
    """Losses by step, on the batches and on text that is never trained on, and the seconds it took."""
    every = max(1, options.steps // 25)
    arguments = TrainingArguments(
        output_dir=str(options.output / "trainer"), max_steps=options.steps, seed=options.seed,
        per_device_train_batch_size=options.batch, per_device_eval_batch_size=options.batch,
        learning_rate=options.rate, lr_scheduler_type="cosine", warmup_steps=options.steps // 20, weight_decay=0.1,
        adam_beta2=0.98, max_grad_norm=1.0, logging_steps=every, logging_first_step=True, eval_strategy="steps",
        eval_steps=max(1, options.steps // 12), eval_on_start=True, save_strategy="no", report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    started = time.perf_counter()
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=held_out)
    # The lines below say the same in fewer words.
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    history = trainer.state.log_history
    return {
        "train": [(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
        "held_out": [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry],
        "parameters": model.num_parameters(),
        "seconds": round(time.perf_counter() - started),
    }


def draw(curves: dict[str, dict], path: Path, title: str) -> None:
    """The loss of each model against the step, held-out text solid, batches thin."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise SystemExit("The picture needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for index, (name, curve) in enumerate(curves.items()):
        label = f"{name}: {curve['parameters']:,} parameters, {curve['held_out'][-1][1]:.3f} nats per byte"
        axes.plot(*zip(*curve["held_out"], strict=True), color=f"C{index}", label=label)
        axes.plot(*zip(*curve["train"], strict=True), color=f"C{index}", linewidth=0.6, alpha=0.6)
    axes.set(xlabel="step", ylabel="loss (nats per byte)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def models(options: argparse.Namespace) -> dict:
    """{name: model} to train, the second of the size of the first."""
    flags = SIZES | {"max_position_embeddings": options.length} | (HYBRID if options.compare else {})
    torch.manual_seed(options.seed)
    ours = ZooForCausalLM(ZooConfig(**flags | dict(options.flags)))
    if not options.compare:
        return {"zoo": ours}
    return {"3 gated delta net : 1 full": ours, "Llama": llama_of_size(ours.num_parameters())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", dest="flags", type=parse_flag, action="append", default=[], metavar="FLAG=VALUE")
    parser.add_argument("--compare", action="store_true", help="a hybrid beside transformers' Llama")
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    parser.add_argument("--output", type=Path, default=Path("output/train_tiny"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="bytes per row")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options.output.mkdir(parents=True, exist_ok=True)
    text = options.corpus.read_bytes()
    cut = len(text) * 19 // 20
    data, held_out = Blocks(text[:cut], options.length), Blocks(text[cut:], options.length, HELD_OUT)
    curves = {}
    for name, model in models(options).items():
        curves[name] = train(model, data, held_out, options)
        (_, first), (_, last) = curves[name]["held_out"][0], curves[name]["held_out"][-1]
        print(
            f"{name}: {curves[name]['parameters']:,} parameters, {options.steps} steps in {curves[name]['seconds']} s, "
            f"loss {first:.3f} -> {last:.3f} on held-out text",
            flush=True,
        )
        model.save_pretrained(options.output / name.split(":")[0].strip().replace(" ", "-").lower())
    (options.output / "losses.json").write_text(json.dumps(curves, indent=1), encoding="utf-8")
    draw(curves, options.output / "loss.png", f"{options.corpus.name}, {options.batch} x {options.length} bytes a step")
    print(f"curve in {options.output / 'loss.png'}")


if __name__ == "__main__":
    run(main)
