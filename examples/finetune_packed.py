"""Fine-tune on documents laid end to end in one row, without padding, as FlashAttention's cu_seq_lens describe them.

    python examples/finetune_packed.py

The collator gives, beside the tokens, where each document begins (`cu_seq_lens_q`, `seq_idx`), and positions that begin
again. Attention and recurrences read the documents apart by them: the loss is that of padded rows, for fewer tokens.
"""

import torch
from fine_tuning import HELD_OUT, converted, hand_back, parser, run, speeches
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)


@torch.no_grad()
def loss_and_tokens(model, batch) -> tuple[float, int]:
    """The loss of a batch, and how many tokens the model works on for it."""
    return model.eval()(**batch, use_cache=False).loss.item(), batch["input_ids"].numel()


def main() -> None:
    options = parser(__doc__, "finetune_packed", steps=60, rate=1e-3).parse_args()
    base, tokenizer = converted(options)
    rows = []
    for row in speeches(options.corpus.read_text()):
        tokens = tokenizer(row["prompt"] + row["completion"]).input_ids + [tokenizer.eos_token_id]
        rows.append({"input_ids": tokens, "labels": list(tokens)})
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)

    packing = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    padding = DataCollatorForSeq2Seq(tokenizer)
    padded, packed = (loss_and_tokens(model, collate(rows[:HELD_OUT])) for collate in (padding, packing))
    print(f"padded: loss {padded[0]:.4f} over {padded[1]:,} tokens; packed: loss {packed[0]:.4f} over {packed[1]:,}")

    arguments = TrainingArguments(
        output_dir=str(options.output / "trainer"), max_steps=options.steps, per_device_train_batch_size=8,
        learning_rate=options.rate, lr_scheduler_type="cosine", save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows[HELD_OUT:], data_collator=packing)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    after, _ = loss_and_tokens(model, padding(rows[:HELD_OUT]))
    print(f"held-out loss {padded[0]:.3f} -> {after:.3f}")
    hand_back(model, tokenizer, options)


if __name__ == "__main__":
    run(main)
