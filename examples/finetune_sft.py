"""Fine-tune on prompts and answers with TRL's SFTTrainer, then on preferences with its DPOTrainer.

    python examples/finetune_sft.py
    python examples/finetune_sft.py --steps 200 --preferences 60

The storyteller of the demo, converted and loaded by the code in its folder, learns to answer with the next speech of a
play. Then it learns to prefer the real speech to the same words in any order. Both train a LoRA whose targets the model
itself names.
"""

import argparse
import random
from pathlib import Path

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

EXAMPLES = Path(__file__).resolve().parent
ROWS, HELD_OUT = 400, 24


def speeches(text: str) -> list[dict]:
    """{"prompt": a speech and the next speaker's name, "completion": what that one says}."""
    parts = [part.strip() for part in text.split("\n\n")]
    parts = [part for part in parts if ":\n" in part and len(part) < 200]
    rows = []
    for before, after in zip(parts, parts[1:], strict=False):
        name, _, words = after.partition(":\n")
        rows.append({"prompt": f"{before}\n\n{name}:\n", "completion": words})
    return rows[:ROWS]


def preferences(rows: list[dict]) -> list[dict]:
    """The real speech is chosen, its words in another order are rejected."""
    pairs = []
    for row in rows:
        words = row["completion"].split()
        random.Random(0).shuffle(words)
        pairs.append({"prompt": row["prompt"], "chosen": row["completion"], "rejected": " ".join(words)})
    return pairs


def settings(kind, options: argparse.Namespace, steps: int, **more):
    """What both trainers are told."""
    return kind(
        output_dir=str(options.output / kind.__name__), max_steps=steps, per_device_train_batch_size=8,
        per_device_eval_batch_size=8, max_length=256, lr_scheduler_type="cosine", save_strategy="no", report_to="none",
        disable_tqdm=True, bf16=torch.cuda.is_available(), dataset_num_proc=None, **more,
    )  # fmt: skip


def run(trainer, name: str, key: str) -> None:
    """Trains, and says what that did to a number of the held-out rows."""
    trainer.remove_callback(PrinterCallback)
    before = trainer.evaluate()[key]
    trainer.train()
    print(f"{name}: {key} {before:.3f} -> {trainer.evaluate()[key]:.3f} on held-out rows", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=EXAMPLES / "stories260K", help="a checkpoint zoo converts")
    parser.add_argument("--corpus", type=Path, default=EXAMPLES / "corpora" / "shakespeare.txt")
    parser.add_argument("--output", type=Path, default=Path("output/finetune_sft"))
    parser.add_argument("--steps", type=int, default=60, help="of supervised fine-tuning")
    parser.add_argument("--preferences", type=int, default=20, help="steps of preference optimisation, 0 for none")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bar()
    torch.manual_seed(0)

    base = options.output / "base"
    if not base.is_dir():
        from conversion import convert

        convert(options.source, base)
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)
    print(f"loaded {type(model).__module__}.{type(model).__name__}")
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=True)
    tokenizer.pad_token = tokenizer.unk_token
    rows = speeches(options.corpus.read_text())
    train, held_out = Dataset.from_list(rows[HELD_OUT:]), Dataset.from_list(rows[:HELD_OUT])

    lora = LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM", **model.lora_targets())
    taught = SFTTrainer(
        model=model, args=settings(SFTConfig, options, options.steps, learning_rate=5e-3),
        train_dataset=train, eval_dataset=held_out, processing_class=tokenizer, peft_config=lora,
    )  # fmt: skip
    run(taught, "supervised", "eval_loss")
    merged = taught.model.merge_and_unload()
    if options.preferences:
        pairs = preferences(rows)
        preferring = DPOTrainer(
            model=merged, args=settings(DPOConfig, options, options.preferences, learning_rate=2e-3, beta=0.3),
            train_dataset=Dataset.from_list(pairs[HELD_OUT:]), eval_dataset=Dataset.from_list(pairs[:HELD_OUT]),
            processing_class=tokenizer, peft_config=lora,
        )  # fmt: skip
        run(preferring, "preferences", "eval_rewards/accuracies")
        merged = preferring.model.merge_and_unload()
    merged.save_pretrained(options.output / "merged")
    tokenizer.save_pretrained(options.output / "merged")
    print(f"merged model in {options.output / 'merged'}")


if __name__ == "__main__":
    main()
