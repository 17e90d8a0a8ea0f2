"""torch.export: a zoo folder's forward as one graph without Python, for any length. export_graph.py FOLDER OUT.pt2"""

import torch
from command_line import model, parser, run
from transformers import AutoModelForCausalLM

from modeling_zoo import ZooForCausalLM  # noqa: F401  (the installed classes run the folder)


def main():
    options = parser(__doc__)
    options.add_argument("folder", type=model)
    options.add_argument("target", help="the file to write, OUT.pt2")
    export(**vars(options.parse_args()))


def export(folder, target):
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    exported.config.use_cache = False
    tokens = torch.arange(10)[None]
    length = torch.export.Dim("length", min=2, max=256)
    with torch.no_grad():
        graph = torch.export.export(exported, (tokens,), dynamic_shapes={"input_ids": {1: length}}, strict=False)
        torch.export.save(graph, target)
        other = torch.randint(exported.config.vocab_size, (1, 23))
        difference = (torch.export.load(target).module()(other).logits - exported(other).logits).abs().max().item()
    print(f"{len(graph.graph.nodes)} nodes, another length differs by {difference:.1e}")
    assert difference < 1e-4


if __name__ == "__main__":
    run(main)
