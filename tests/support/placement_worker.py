"""One rank of test_placement.py: FOLDER LAYOUT; loads a folder so and writes what it holds and gives."""

import json
import sys

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from transformers.utils import logging


def main(folder, layout):
    logging.set_verbosity_error()
    sizes = json.loads(layout)
    torch.manual_seed(0)
    options = {"distributed_config": DistributedConfig(**sizes), "trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    held = {}
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        held[name] = local.numel() * local.element_size() if local.device.type != "meta" else 0
    rank = dist.get_rank()
    found = {"held": held}
    tokens = torch.load(f"{folder}/tokens.pt")
    with torch.no_grad():
        found["logits"] = model(tokens).logits
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    found["sequence"] = model.generate(tokens, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    model.save_pretrained(f"{folder}/saved")
    torch.save(found, f"{folder}/found{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
