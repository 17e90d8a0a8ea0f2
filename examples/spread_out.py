"""One folder over several processes, or with layers on disk: each says what it holds, the first one tells the story.

FOLDER is any converted one; of --tp, --ep, --fsdp and --pp there is one, or --tp with another.

    torchrun --nproc-per-node 2 examples/spread_out.py FOLDER --tp 2            # every matrix split
    torchrun --nproc-per-node 2 examples/spread_out.py FOLDER --tp 2 --ep 2     # whole experts apart
    torchrun --nproc-per-node 2 examples/spread_out.py FOLDER --fsdp 2          # gathered layer by layer
    torchrun --nproc-per-node 2 examples/spread_out.py FOLDER --pp 2            # half of the layers each
    python examples/spread_out.py FOLDER --disk 3                               # the last three layers on disk
"""

import torch
import torch.distributed as dist
from command_line import model, parser, run
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig
from transformers.utils import logging

SIZES = ("tp", "ep", "fsdp", "pp")


def load(options):
    """The model as the options lay it out, by the code in the folder."""
    trusted = {"pretrained_model_name_or_path": options.folder, "trust_remote_code": True}
    if not options.disk:
        sizes = {f"{name}_size": size for name in SIZES if (size := getattr(options, name))}
        return AutoModelForCausalLM.from_pretrained(**trusted, distributed_config=DistributedConfig(**sizes))
    config = AutoConfig.from_pretrained(**trusted)
    with torch.device("meta"):
        parts = AutoModelForCausalLM.from_config(config, trust_remote_code=True).model.named_children()
    places = {f"model.{name}": "cpu" for name, _ in parts if name != "layers"} | {"lm_head": "cpu"}
    last = config.num_hidden_layers - options.disk
    places |= {f"model.layers.{index}": "cpu" if index < last else "disk" for index in range(config.num_hidden_layers)}
    return AutoModelForCausalLM.from_pretrained(**trusted, device_map=places, offload_folder=options.offload)


def held_bytes(model) -> int:
    """What of the model is in this process' memory."""
    local = [parameter.to_local() if hasattr(parameter, "to_local") else parameter for parameter in model.parameters()]
    return sum(part.nbytes for part in local if part.device.type != "meta")


def main() -> None:
    made = parser(__doc__)
    made.add_argument("folder", type=model)
    for name in SIZES:
        made.add_argument(f"--{name}", type=int)
    made.add_argument("--disk", type=int, default=0, help="this many layers go to disk")
    made.add_argument("--offload", default="output/offload", help="where on disk")
    made.add_argument("--prompt", default="Once upon a time")
    made.add_argument("--save", help="write the whole model there")
    options = made.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    spread, tokenizer = load(options).eval(), AutoTokenizer.from_pretrained(options.folder, trust_remote_code=True)
    rank = dist.get_rank() if dist.is_initialized() else 0
    print(f"rank {rank} holds {held_bytes(spread):,} bytes", flush=True)
    tokens = spread.generate(**tokenizer(options.prompt, return_tensors="pt"), max_new_tokens=24, do_sample=False)
    if rank == 0:
        print(tokenizer.decode(tokens[0], skip_special_tokens=True), flush=True)
    if options.save:
        spread.save_pretrained(options.save)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    run(main)
