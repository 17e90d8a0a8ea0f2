"""FOLDER: what another version of transformers makes of the cases in it: zoo folders are loaded by the code in them,
other families' checkpoints are converted first. Writes each case's logits and tokens, or why there are none."""

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging


def load(folder, family):
    if family is None:
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    from conversion import convert

    with tempfile.TemporaryDirectory() as scratch:
        convert(folder, Path(scratch) / "zoo", progress=False)
        return AutoModelForCausalLM.from_pretrained(Path(scratch) / "zoo", trust_remote_code=True)


def unreadable(folder, reads):
    """Why this version's own classes cannot read a family's file, or None."""
    if reads not in CONFIG_MAPPING:
        return f"has no {reads}"
    try:
        AutoConfig.from_pretrained(folder)
    except Exception as error:
        return f"does not read its own {reads}: {error}"
    return None


def answer(folder, family):
    model, inputs = load(folder, family).eval(), torch.load(folder / "inputs.pt")
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        logits = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
    return {"logits": logits, "tokens": tokens, "class": type(model).__module__}


def main(folder):
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    found = {"version": transformers.__version__}
    for name, (reads, family) in torch.load(f"{folder}/cases.pt").items():
        if reads is not None and (reason := unreadable(Path(folder) / name, reads)):
            found[name] = {"absent": reason}
            continue
        try:
            found[name] = answer(Path(folder) / name, family)
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
    torch.save(found, f"{folder}/found-{transformers.__version__}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
