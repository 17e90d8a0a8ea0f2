"""Teach a model of which only four bits of each weight are kept (QLoRA), with tokens it has never seen.

    python examples/finetune_qlora.py
    python examples/finetune_qlora.py --steps 200 --rank 16

The linear maps are rounded to NF4 by bitsandbytes, on a CPU too, and stay as they are; a LoRA in full precision learns
on top of them (Dettmers et al. 2023), and with it two rows of the token table that are new: <|asks|> and <|answers|>.
The adapter alone is small. Merged into the weights as they were, it is a model, and a checkpoint of the family.
"""

import torch
from fine_tuning import HELD_OUT, converted, hand_back, parser, positive, run, save_adapter, speeches
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

NEW_TOKENS = ["<|asks|>", "<|answers|>"]
FOUR_BITS = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
)


def widened(base, tokenizer, **options):
    """The model of a folder with rows for every token of the tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True, **options)
    model.resize_token_embeddings(len(tokenizer))
    return model


@torch.no_grad()
def loss(model, batch) -> float:
    """Of held-out rows. In training mode, in which nothing here is random: for evaluation bitsandbytes packs weights
    again on some CPUs, and only those whose sizes are multiples of 32."""
    return model.train()(**batch).loss.item()


def main() -> None:
    made = parser(__doc__, "finetune_qlora", steps=60, rate=5e-3)
    made.add_argument("--rank", type=positive, default=8)
    options = made.parse_args()
    base, tokenizer = converted(options)
    tokenizer.add_special_tokens({"additional_special_tokens": NEW_TOKENS})
    asks, answers = tokenizer.convert_tokens_to_ids(NEW_TOKENS)
    rows = [
        {"input_ids": [asks, *tokenizer(row["prompt"]).input_ids, answers, *tokenizer(row["completion"]).input_ids]}
        for row in speeches(options.corpus.read_text())
    ]

    model = prepare_model_for_kbit_training(
        widened(base, tokenizer, quantization_config=FOUR_BITS), use_gradient_checkpointing=False
    )
    print(f"{type(model).__module__}: {model.get_memory_footprint():,} bytes")
    lora = LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, task_type="CAUSAL_LM", trainable_token_indices=[asks, answers],
        **model.lora_targets(),
    )  # fmt: skip
    adapted = get_peft_model(model, lora)
    arguments = TrainingArguments(
        output_dir=str(options.output / "trainer"), max_steps=options.steps, per_device_train_batch_size=8,
        learning_rate=options.rate, lr_scheduler_type="cosine", save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    held_out = collator(rows[:HELD_OUT])
    trainer = Trainer(model=adapted, args=arguments, train_dataset=rows[HELD_OUT:], data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    before = loss(adapted, held_out)
    trainer.train()
    print(f"held-out loss {before:.3f} -> {loss(adapted, held_out):.3f}")

    # The adapter has the new rows; the rest of the table is that of the base.
    tokenizer.save_pretrained(options.output / "adapter")
    adapter = save_adapter(adapted, options, save_embedding_layers=False)
    merged = PeftModel.from_pretrained(widened(base, tokenizer), adapter).merge_and_unload()
    hand_back(merged, tokenizer, options)


if __name__ == "__main__":
    run(main)
