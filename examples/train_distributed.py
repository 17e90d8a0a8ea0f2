"""Train one model over many processes with transformers' DistributedConfig, and go on in another layout.

    torchrun --nproc-per-node 4 examples/train_distributed.py --tp 2 --fsdp 2 --steps 20
    torchrun --nproc-per-node 2 examples/train_distributed.py --fsdp 2 --ep 2 --steps 40 --resume
    python examples/train_distributed.py --steps 60 --resume          # one process

Kimi delta attention, latent attention and experts learn Shakespeare byte by byte. Every process computes its part of
one global batch, so that a layout changes where numbers are, not what they are. The checkpoint is that of torch's DCP,
each process writing its own shards of weights and AdamW's state; any other layout reads it. At the end --output/model
is a folder like any other.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.distributed import (
    DistributedConfig,
    consolidate_distributed_checkpoint,
    load_optimizer_distributed,
    save_optimizer_distributed,
)
from transformers.utils import logging

from modeling_zoo import ZooConfig, ZooForCausalLM

CORPUS = Path(__file__).resolve().parent / "corpora" / "shakespeare.txt"
MIX = ZooConfig(
    vocab_size=256, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
    max_position_embeddings=128, initializer={"type": "auto"}, attention_type="latent", kv_lora_rank=16, q_lora_rank=24,
    qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=16, linear_attention_type="kimi_delta_attention",
    layer_types=["linear_attention", "linear_attention", "full_attention"], linear_num_key_heads=4,
    linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16, num_experts=4, num_experts_per_tok=2,
    moe_intermediate_size=48, scoring_func="sigmoid", router_aux_loss_coef=0.0,
    use_score_correction_bias=True,
)  # fmt: skip


def layout_of(options: argparse.Namespace) -> DistributedConfig | None:
    """How the processes share the model, None for one; raises ValueError for sizes that do not make up the world."""
    sizes = {f"{name}_size": getattr(options, name) for name in ("tp", "fsdp", "ep")}
    world = int(os.environ.get("WORLD_SIZE", 1))
    if options.tp * options.fsdp != world:
        raise ValueError(f"--tp {options.tp} times --fsdp {options.fsdp} is not the number of processes, {world}.")
    if options.batch % options.fsdp:
        raise ValueError(f"--batch {options.batch} does not divide into --fsdp {options.fsdp} parts.")
    return DistributedConfig(**sizes) if world > 1 else None


def load(options: argparse.Namespace, layout: DistributedConfig | None):
    """The model of the start or of the last checkpoint, laid out; each process reads its part."""
    folder = last_checkpoint(options) / "model" if options.resume else options.output / "start"
    if layout is None and list(folder.glob("shard-*.safetensors")):
        # For one process the shards become whole tensors.
        whole = folder.with_name("whole")
        consolidate_distributed_checkpoint(folder, whole)
        MIX.save_pretrained(whole)
        folder = whole
    return ZooForCausalLM.from_pretrained(folder, distributed_config=layout, dtype=torch.float32).train()


def last_checkpoint(options: argparse.Namespace) -> Path:
    """The folder of the latest step, each of which has one of its own: shards of another layout must not stay beside
    newer ones. Raises ValueError where there is none that was finished."""
    finished = [path.parent for path in options.output.glob("checkpoint-*/state.json")]
    if not finished:
        raise ValueError(f"--resume: {options.output} has no checkpoint; train without --resume first.")
    return max(finished, key=lambda path: int(path.name.partition("-")[2]))


def batches(options: argparse.Namespace, first: int):
    """For each step from `first` on the rows of the global batch `[batch, length]`."""
    text = torch.frombuffer(bytearray(CORPUS.read_bytes()), dtype=torch.uint8).long()
    for step in range(first, options.steps):
        starts = torch.randint(
            len(text) - options.length, (options.batch,), generator=torch.Generator().manual_seed(step)
        )
        yield step, torch.stack([text[start : start + options.length] for start in starts.tolist()])


def save(model, optimizer, step: int, options: argparse.Namespace, layout: DistributedConfig | None) -> None:
    """Weights, AdamW's state and the step; every process calls it."""
    checkpoint = options.output / f"checkpoint-{step}"
    model.save_pretrained(checkpoint / "model", distributed_checkpoint=layout is not None)
    save_optimizer_distributed(model, optimizer, str(checkpoint / "optimizer"))
    if rank() == 0:
        (checkpoint / "state.json").write_text(json.dumps({"step": step}))


@torch.no_grad()
def clip(model, largest: float) -> None:
    """Scales all gradients so that their norm together is at most `largest`. torch's own asks that all be on one mesh,
    and experts apart are on another."""
    norms = [weight.grad.norm() for weight in model.parameters() if weight.grad is not None]
    total = torch.stack([norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]).norm()
    for weight in model.parameters():
        if weight.grad is not None:
            weight.grad.mul_(min(1.0, largest / (total.item() + 1e-6)))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tp", type=int, default=1, help="processes that share every matrix")
    parser.add_argument("--fsdp", type=int, default=1, help="processes with batches of their own, weights apart")
    parser.add_argument("--ep", type=int, default=1, help="processes that have different experts")
    parser.add_argument("--steps", type=int, default=40, help="up to this step, of all runs together")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("output/train_distributed"))
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    layout = layout_of(options)
    if not dist.is_initialized() and "RANK" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if rank() == 0 and not options.resume:
        torch.manual_seed(0)
        ZooForCausalLM(MIX).save_pretrained(options.output / "start")
    if dist.is_initialized():
        dist.barrier()
    model = load(options, layout)
    optimizer = torch.optim.AdamW(model.parameter_groups(weight_decay=0.1), lr=options.rate, foreach=False)
    first = 0
    if options.resume:
        load_optimizer_distributed(model, optimizer, str(last_checkpoint(options) / "optimizer"))
        first = json.loads((last_checkpoint(options) / "state.json").read_text())["step"]
    # Processes that share every matrix read the same rows.
    share, part = options.batch // options.fsdp, rank() // options.tp
    for step, rows in batches(options, first):
        own = rows[part * share : (part + 1) * share].to(model.device)
        # Each loss is a mean over as many targets, and FSDP averages gradients.
        loss = model(own, labels=own).loss
        loss.backward()
        clip(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if rank() == 0 and (step + 1) % 10 == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    save(model, optimizer, options.steps, options, layout)
    model.save_pretrained(options.output / "model")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
