"""torch.export: a zoo folder's forward as one graph without Python, for any length. export_graph.py FOLDER OUT.pt2"""

import sys

import torch
from transformers import AutoModelForCausalLM

from modeling_zoo import ZooForCausalLM  # noqa: F401  (the installed classes run the folder)


def main(folder, target):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.use_cache = False
    tokens = torch.arange(10)[None]
    length = torch.export.Dim("length", min=2, max=256)
    with torch.no_grad():
        graph = torch.export.export(model, (tokens,), dynamic_shapes={"input_ids": {1: length}}, strict=False)
        torch.export.save(graph, target)
        other = torch.randint(model.config.vocab_size, (1, 23))
        difference = (torch.export.load(target).module()(other).logits - model(other).logits).abs().max().item()
    print(f"{len(graph.graph.nodes)} nodes, another length differs by {difference:.1e}")
    assert difference < 1e-4


if __name__ == "__main__":
    main(*sys.argv[1:])
