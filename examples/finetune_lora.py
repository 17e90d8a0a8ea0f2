"""Fine-tune a converted model with LoRA, or another of PEFT's ways, knowing nothing of its architecture.

    python examples/finetune_lora.py
    python examples/finetune_lora.py --steps 400 --rank 16
    python examples/finetune_lora.py --kind dora

The storyteller of the demo is converted, loaded by the code in its folder and taught Shakespeare with PEFT and
transformers' Trainer. What comes out, in --output: the adapter, the merged model, which is a folder like any other, and
the same as a checkpoint of the family (learned tokens in front of a prompt cannot be merged).
"""

import argparse
from pathlib import Path

from fine_tuning import HELD_OUT, converted, hand_back, parser, positive, run, save_adapter
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

LENGTH = 128
IN_FRONT = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}


def adapter(kind: str, rank: int, targets: dict):
    """PEFT's config of a kind; `targets` are what the model names."""
    task = {"task_type": "CAUSAL_LM"}
    if kind in IN_FRONT:
        return IN_FRONT[kind](num_virtual_tokens=rank, **task)
    if kind == "lora":
        return LoraConfig(r=rank, lora_alpha=2 * rank, **targets, **task)
    # DoRA and IA3 adapt modules only, not the parameters of experts.
    modules = targets["target_modules"]
    if kind == "dora":
        return LoraConfig(r=rank, lora_alpha=2 * rank, use_dora=True, target_modules=modules, **task)
    return IA3Config(target_modules=modules, feedforward_modules=["down_proj"], **task)


def blocks(tokenizer, text: str) -> list[dict]:
    """The text as rows of LENGTH tokens."""
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    rows = [tokens[start : start + LENGTH] for start in range(0, len(tokens) - LENGTH, LENGTH)]
    return [{"input_ids": row} for row in rows]


def load(folder: Path):
    """The model by the code in its folder."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def make_trainer(model, tokenizer, rows: list[dict], options: argparse.Namespace) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(options.output / "trainer"), max_steps=options.steps, per_device_train_batch_size=8,
        learning_rate=options.rate, lr_scheduler_type="cosine", warmup_steps=options.steps // 20, save_strategy="no",
        report_to="none", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows[HELD_OUT:], eval_dataset=rows[:HELD_OUT], data_collator=collator
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def main() -> None:
    made = parser(__doc__, "finetune_lora", steps=150, rate=5e-3)
    made.add_argument("--kind", choices=("lora", "dora", "ia3", *IN_FRONT), default="lora")
    made.add_argument("--rank", type=positive, default=8, help="of LoRA and DoRA; the number of learned tokens")
    options = made.parse_args()
    base, tokenizer = converted(options)
    model = load(base)
    rows = blocks(tokenizer, options.corpus.read_text())

    targets = model.lora_targets()
    print(f"{type(model).__module__}.{type(model).__name__}: {options.kind} on {targets}")
    adapted = get_peft_model(model, adapter(options.kind, options.rank, targets))
    trainer = make_trainer(adapted, tokenizer, rows, options)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    learned, total = adapted.get_nb_trainable_parameters()
    print(f"{learned:,} of {total:,} parameters, {options.steps} steps: held-out loss {before:.3f} -> {after:.3f}")

    trained = PeftModel.from_pretrained(load(base), save_adapter(adapted, options))
    if options.kind not in IN_FRONT:
        trained = trained.merge_and_unload()
        hand_back(trained, tokenizer, options)
    prompt = tokenizer("ROMEO:\n", return_tensors="pt")
    text = trained.generate(**prompt, max_new_tokens=80, do_sample=True, top_p=0.9)
    print(tokenizer.decode(text[0], skip_special_tokens=True))


if __name__ == "__main__":
    run(main)
