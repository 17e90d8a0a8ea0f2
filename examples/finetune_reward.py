"""Teach a model to say which of two answers is better: TRL's RewardTrainer and a head with one number.

    python examples/finetune_reward.py

The storyteller gets a new head that reads the last token (AutoModelForSequenceClassification, one label). What is
chosen is the next speech of a play, what is rejected the same words in another order.
"""

import random

from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from fine_tuning import HELD_OUT, converted, hand_back, parser, run, speeches
from transformers import AutoModelForSequenceClassification, PrinterCallback
from trl import RewardConfig, RewardTrainer


def pairs(rows: list[dict]) -> list[dict]:
    """The real speech is chosen, its words in another order are rejected."""
    made = []
    for row in rows:
        words = row["completion"].split()
        random.Random(0).shuffle(words)
        made.append({"prompt": row["prompt"], "chosen": row["completion"], "rejected": " ".join(words)})
    return made


def main() -> None:
    options = parser(__doc__, "finetune_reward", steps=60, rate=1e-3).parse_args()
    disable_progress_bar()
    base, tokenizer = converted(options)
    rows = pairs(speeches(options.corpus.read_text()))
    model = AutoModelForSequenceClassification.from_pretrained(base, trust_remote_code=True, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    arguments = RewardConfig(
        output_dir=str(options.output / "trainer"), max_steps=options.steps, per_device_train_batch_size=8,
        per_device_eval_batch_size=8, learning_rate=options.rate, max_length=256, save_strategy="no", report_to="none",
        disable_tqdm=True, bf16=False,
    )  # fmt: skip
    trainer = RewardTrainer(
        model=model, args=arguments, processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows[HELD_OUT:]), eval_dataset=Dataset.from_list(rows[:HELD_OUT]),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    print(f"held-out loss {before['eval_loss']:.3f} -> {after['eval_loss']:.3f}")
    print(f"the better answer found: {before['eval_accuracy']:.2f} -> {after['eval_accuracy']:.2f}")
    hand_back(trainer.model, tokenizer, options)


if __name__ == "__main__":
    run(main)
