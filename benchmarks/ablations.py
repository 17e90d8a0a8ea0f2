"""What a concept does to the loss of a small model, beside one without it: the ablations of docs/concepts/.

    python benchmarks/ablations.py                  all of them, as benchmarks/results/ablations.json
    python benchmarks/ablations.py --only nope      one, or several

Both models have the same number of parameters (of experts, active for a token), which the width of the MLP makes up
for, and learn from the same batches of examples/corpora/shakespeare.txt, a token a byte; the loss is that of text that
is held out, in nats per byte, without what is added for training. Small models on little text: a difference within the
spread of the seeds says nothing, and one beyond it says nothing about large models.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch.nn import functional

from configuration_zoo import ZooConfig
from description_zoo.measure import measure
from modeling_zoo import ZooForCausalLM
from zoo.site.concept import SMALL, Concept
from zoo.site.concepts import CONCEPTS

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "examples" / "corpora" / "shakespeare.txt"
RESULTS = ROOT / "benchmarks" / "results" / "ablations.json"
ROWS, LENGTH, STEPS, HELD_OUT, SEEDS = 8, 128, 200, 96, (1, 2, 3)
RATE, WARM_UP = 3e-3, 20


def main() -> None:
    """Trains what is not in the results yet."""
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("--only", nargs="*", choices=[slug for slug, concept in CONCEPTS.items() if concept.trained])
    wanted = reader.parse_args().only or [slug for slug, concept in CONCEPTS.items() if concept.trained]
    torch.manual_seed(0)
    text = torch.tensor(list(CORPUS.read_bytes()))
    for slug in wanted:
        for fields in models_of(CONCEPTS[slug]):
            for seed in SEEDS:
                found = results()
                name = key_of(fields)
                runs = found.setdefault(name, {"fields": fields, "losses": {}})
                if str(seed) not in runs["losses"]:
                    start = time.perf_counter()
                    runs["losses"][str(seed)] = trained(fields, seed, text)
                    print(f"{slug} seed {seed}: {runs['losses'][str(seed)]:.4f}, {time.perf_counter() - start:.0f} s")
                    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def results() -> dict:
    """{fields as text: {"fields": ..., "losses": {seed: loss}}} of what was trained."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def key_of(fields: dict) -> str:
    """A model's fields as one line, less what all models share."""
    return json.dumps({name: value for name, value in fields.items() if SMALL.get(name) != value}, sort_keys=True)


def models_of(concept: Concept) -> tuple[dict, dict]:
    """Fields of the small model with the concept and of its twin, as large as the plain one."""
    return tuple(as_large(fields, concept.match) for fields in concept.sizes(small=True))


def as_large(fields: dict, match: str) -> dict:
    """The fields with the MLP width, a multiple of 4, that brings the model nearest to the plain one's parameters."""
    target, width = size_of(SMALL, match), "moe_intermediate_size" if match == "active" else "intermediate_size"
    if "sparse" not in ZooConfig(**fields).mlp_layer_types:
        width = "intermediate_size"
    low = size_of(fields | {width: 4}, match)
    slope = (size_of(fields | {width: 104}, match) - low) / 100
    nearest = 4 + 4 * round((target - low) / slope / 4)
    return fields | {width: max(4, nearest)}


def size_of(fields: dict, match: str) -> int:
    report = measure(ZooConfig(**fields))
    return report["active_parameters"] if match == "active" else report["parameters"] - report["prediction_parameters"]


def trained(fields: dict, seed: int, text: torch.Tensor) -> float:
    """Loss on the held-out rows after training, in nats per byte."""
    torch.manual_seed(seed)
    model = ZooForCausalLM(ZooConfig(**fields, dtype="float32"))
    held_out = HELD_OUT * LENGTH
    body, rest = text[:-held_out], text[-held_out:].view(HELD_OUT, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    batches = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate_at(step)
        starts = torch.randint(0, len(body) - LENGTH, (ROWS,), generator=batches)
        tokens = torch.stack([body[start : start + LENGTH] for start in starts])
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(rows, use_cache=False).logits for rows in rest.split(16)])
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rest[:, 1:].flatten()).item()


def rate_at(step: int) -> float:
    """A warm-up, then half a cosine to a tenth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.55 + 0.45 * math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP))


if __name__ == "__main__":
    main()
