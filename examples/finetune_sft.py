"""Fine-tune on prompts and answers with TRL's SFTTrainer, then on preferences with its DPOTrainer.

    python examples/finetune_sft.py
    python examples/finetune_sft.py --steps 200 --preferences 60

The storyteller of the demo, converted and loaded by the code in its folder, learns to answer with the next speech of a
play. Then it learns to prefer the real speech to the same words in any order. Both train a LoRA whose targets the model
itself names. What comes out is a folder, and a checkpoint of the family the storyteller came from.
"""

import argparse

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from fine_tuning import HELD_OUT, converted, hand_back, parser, run, speeches
from finetune_reward import pairs
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer


def settings(kind, options: argparse.Namespace, steps: int, **more):
    """What both trainers are told."""
    return kind(
        output_dir=str(options.output / kind.__name__), max_steps=steps, per_device_train_batch_size=8,
        per_device_eval_batch_size=8, max_length=256, lr_scheduler_type="cosine", save_strategy="no", report_to="none",
        disable_tqdm=True, bf16=torch.cuda.is_available(), dataset_num_proc=None, **more,
    )  # fmt: skip


def fit(trainer, name: str, key: str) -> None:
    """Trains, and says what that did to a number of the held-out rows."""
    trainer.remove_callback(PrinterCallback)
    before = trainer.evaluate()[key]
    trainer.train()
    print(f"{name}: {key} {before:.3f} -> {trainer.evaluate()[key]:.3f} on held-out rows", flush=True)


def main() -> None:
    made = parser(__doc__, "finetune_sft", steps=60, rate=5e-3)
    made.add_argument("--preferences", type=int, default=20, help="steps of preference optimisation, 0 for none")
    options = made.parse_args()
    disable_progress_bar()
    base, tokenizer = converted(options)
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)
    print(f"loaded {type(model).__module__}.{type(model).__name__}")
    rows = speeches(options.corpus.read_text())
    train, held_out = Dataset.from_list(rows[HELD_OUT:]), Dataset.from_list(rows[:HELD_OUT])

    lora = LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM", **model.lora_targets())
    taught = SFTTrainer(
        model=model, args=settings(SFTConfig, options, options.steps, learning_rate=options.rate),
        train_dataset=train, eval_dataset=held_out, processing_class=tokenizer, peft_config=lora,
    )  # fmt: skip
    fit(taught, "supervised", "eval_loss")
    merged = taught.model.merge_and_unload()
    if options.preferences:
        preferred = pairs(rows)
        preferring = DPOTrainer(
            model=merged, args=settings(DPOConfig, options, options.preferences, learning_rate=2e-3, beta=0.3),
            train_dataset=Dataset.from_list(preferred[HELD_OUT:]), eval_dataset=Dataset.from_list(preferred[:HELD_OUT]),
            processing_class=tokenizer, peft_config=lora,
        )  # fmt: skip
        fit(preferring, "preferences", "eval_rewards/accuracies")
        merged = preferring.model.merge_and_unload()
    hand_back(merged, tokenizer, options)


if __name__ == "__main__":
    run(main)
