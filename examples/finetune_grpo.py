"""Learn from rewards of what the model itself writes: TRL's GRPOTrainer (Shao et al. 2024).

    python examples/finetune_grpo.py
    python examples/finetune_grpo.py --steps 60

For each beginning the storyteller writes eight continuations; those whose sentences are closer to five words than the
others' become likelier. A LoRA learns, with targets that the model itself names.
"""

from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from fine_tuning import converted, hand_back, parser, run, save_adapter
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

NAMES, PLACES = ("Lily", "Tom", "Sue", "Max", "Anna", "Ben"), ("park", "garden", "house", "forest")
PROMPTS = [{"prompt": f"Once upon a time, {name} was in the {place}."} for name in NAMES for place in PLACES]


def five_words(completions: list[str], **_: object) -> list[float]:
    """How far a sentence is from five words on average, negative; what is no sentence counts as one."""
    return [-abs(len(text.split()) / max(1, sum(map(text.count, ".!?"))) - 5) for text in completions]


def main() -> None:
    options = parser(__doc__, "finetune_grpo", steps=20, rate=5e-3).parse_args()
    disable_progress_bar()
    base, tokenizer = converted(options)
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)
    arguments = GRPOConfig(
        output_dir=str(options.output / "trainer"), max_steps=options.steps, per_device_train_batch_size=16,
        num_generations=8, max_completion_length=48, learning_rate=options.rate, logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, bf16=False,
    )  # fmt: skip
    lora = LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", **model.lora_targets())
    trainer = GRPOTrainer(
        model=model, args=arguments, reward_funcs=five_words, train_dataset=Dataset.from_list(PROMPTS),
        processing_class=tokenizer, peft_config=lora,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    part = max(1, len(rewards) // 4)
    first, last = (sum(some) / part for some in (rewards[:part], rewards[-part:]))
    print(f"words from five in a sentence {-first:.2f} -> {-last:.2f}")
    save_adapter(trainer.model, options)
    hand_back(trainer.model.merge_and_unload(), tokenizer, options)


if __name__ == "__main__":
    run(main)
