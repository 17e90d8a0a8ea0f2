"""A training loop of your own with accelerate: accumulation, clipping, mixed precision, any number of processes.

    python examples/train_accelerate.py
    accelerate launch --num_processes 2 --cpu examples/train_accelerate.py

A model with experts learns Shakespeare byte by byte. The loss is divided by the target tokens of all accumulated
batches, so that the number of passes per step changes nothing.
"""

import argparse
import itertools
from pathlib import Path

import torch
from accelerate import Accelerator
from command_line import run
from torch.utils.data import DataLoader

from modeling_zoo import ZooConfig, ZooForCausalLM

CORPUS = Path(__file__).resolve().parent / "corpora" / "shakespeare.txt"
FLAGS = {
    **{
        "vocab_size": 256,
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "router_aux_loss_coef": 0.01},
    **{"output_z_loss_coef": 1e-4, "initializer.residual_type": "depth", "max_position_embeddings": 128},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/train_accelerate"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--passes", type=int, default=2, help="forward and backward passes per step")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    options = parser.parse_args()
    accelerator = Accelerator(
        gradient_accumulation_steps=options.passes,
        mixed_precision=options.mixed_precision,
        cpu=not torch.cuda.is_available(),
    )
    torch.manual_seed(0)
    model = ZooForCausalLM(ZooConfig(**FLAGS)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    rows = torch.frombuffer(bytearray(CORPUS.read_bytes()), dtype=torch.uint8).long()
    rows = rows[: len(rows) // 128 * 128].view(-1, 128)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows, batch_size=8, shuffle=True))

    batches = (batch for _ in itertools.count() for batch in loader)
    for step in range(options.steps):
        passes = [next(batches) for _ in range(options.passes)]
        targets = accelerator.gather(
            torch.tensor(sum(batch[:, 1:].numel() for batch in passes), device=accelerator.device)
        )
        total = 0.0
        for batch in passes:
            with accelerator.accumulate(model):
                loss = model(input_ids=batch, labels=batch, num_items_in_batch=targets).loss
                # The loss is already divided by the number of targets; accelerate divides by processes and passes
                # again.
                accelerator.backward(loss * accelerator.num_processes * options.passes)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            total += accelerator.gather(loss.detach()).sum().item()
        if accelerator.is_main_process and (step % 10 == 0 or step == options.steps - 1):
            print(f"step {step + 1}: loss {total:.3f}", flush=True)
    accelerator.unwrap_model(model).save_pretrained(options.output, is_main_process=accelerator.is_main_process)


if __name__ == "__main__":
    run(main)
