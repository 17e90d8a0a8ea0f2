"""One rank of test_language_loss.py: FOLDER [TENSOR-PARALLEL RANKS]; steps of a loss in chunks over FSDP2, each rank
with targets of its own."""

import sys

import torch
import torch.distributed as dist
from transformers.distributed import DistributedConfig
from transformers.utils import logging

from modeling_zoo import ZooForCausalLM


def whole_tensor(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def main(folder, tensor_ranks="1"):
    logging.set_verbosity_error()
    layout = DistributedConfig(fsdp_size=2 // int(tensor_ranks), tp_size=int(tensor_ranks))
    model = ZooForCausalLM.from_pretrained(folder, distributed_config=layout).train()
    rank = dist.get_rank()
    tokens, labels = torch.load(f"{folder}/batches.pt")[rank if tensor_ranks == "1" else 0]
    found = []
    for options in ({"loss_chunk_size": 3}, {"loss_chunk_size": 3}, {}):
        model.zero_grad()
        outputs = model(tokens, labels=labels, **options)
        outputs.loss.backward()
        gradients = {name: whole_tensor(parameter.grad) for name, parameter in model.named_parameters()}
        logits = None if outputs.logits is None else outputs.logits.detach()
        found.append(({"loss": outputs.loss.detach(), "logits": logits}, gradients))
    try:
        model(tokens, labels=labels, loss_chunk_size=3, logits_to_keep=2)
        refused = None
    except ValueError as error:
        refused = str(error)
    torch.save((found, refused), f"{folder}/found{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
