"""The main job on a real checkpoint, end to end: `make demo`.

A trained Llama is converted, loaded as remote code where zoo cannot be imported, compared with transformers' own class,
asked for a story, looked into, and converted back.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conversion.errors import report
from zoo.cli.main import app

EXAMPLES = Path(__file__).resolve().parent
SOURCE = EXAMPLES / "stories260K"
PROMPT, NEW_TOKENS = "Once upon a time", 80
# Float32 sums in another order: relative to the largest logit.
TOLERANCE = 2e-5


def zoo(*arguments) -> None:
    """One command line of zoo, run in this process so that torch is imported once."""
    arguments = [str(argument) for argument in arguments]
    print(f"$ zoo {' '.join(arguments)}", flush=True)
    app(arguments, standalone_mode=False)


def remote(folder: Path, scratch: Path) -> dict:
    """What the folder alone says, in a process that cannot import zoo: see load_remote.py."""
    answer = scratch / "answer.json"
    command = [sys.executable, "-P", EXAMPLES / "load_remote.py", folder, PROMPT, NEW_TOKENS, answer]
    environment = os.environ | {"HF_MODULES_CACHE": str(scratch / "modules")}
    if subprocess.run([str(part) for part in command], cwd=scratch, env=environment).returncode:
        raise SystemExit(f"{folder} did not load as remote code")
    return json.loads(answer.read_text())


def original(input_ids: list[int]) -> tuple[list, list[int]]:
    """-> logits of the prompt and the greedy tokens of transformers' LlamaForCausalLM on the source."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(SOURCE, dtype=torch.float32)
    prompt = torch.tensor([input_ids])
    with torch.no_grad():
        logits = model(prompt).logits[0]
        tokens = model.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
    return logits, tokens.tolist()


def compare(answer: dict) -> None:
    """Raises SystemExit unless the remote model agrees with the original."""
    import torch

    logits, tokens = original(answer["input_ids"])
    difference = (torch.tensor(answer["logits"]) - logits).abs().max().item() / logits.abs().max().item()
    same = tokens == answer["tokens"]
    print(f"logits against transformers' LlamaForCausalLM: largest relative difference {difference:.1e}")
    print(f"greedy tokens: {'all' if same else 'NOT all'} {len(tokens)} equal\n")
    if difference > TOLERANCE or not same:
        raise SystemExit("the converted model is not the original")


def compare_tensors(back: Path) -> None:
    """Raises SystemExit unless converting back gave every tensor bit for bit."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / "model.safetensors") for folder in (back, SOURCE))
    differing = sorted(ours.keys() ^ theirs.keys())
    differing += [
        name
        for name in ours.keys() & theirs.keys()
        if ours[name].dtype != theirs[name].dtype or ours[name].numpy().tobytes() != theirs[name].numpy().tobytes()
    ]
    if differing:
        raise SystemExit(f"not bit-equal: {', '.join(differing)}")
    print(f"converted back: all {len(theirs)} tensors are bit-equal to the source")


def main() -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        converted, back = scratch / "stories-zoo", scratch / "stories-llama"
        zoo("convert", SOURCE, converted, "--no-progress")
        answer = remote(converted, scratch)
        print(f"\nloaded {answer['class']} as remote code")
        print(f"where `import modeling_zoo` says: {answer['import_error']}")
        compare(answer)
        print(f"{answer['text']}\n")
        zoo("inspect", converted)
        zoo("convert", converted, back, "--to", "llama", "--no-progress")
        compare_tensors(back)
    print(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.exit(report(error))
