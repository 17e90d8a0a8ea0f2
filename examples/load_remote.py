"""FOLDER PROMPT NEW_TOKENS ANSWER.json [REVISION]: load a zoo folder, or one on the Hub, by nothing but its own code.

The import of zoo's own packages is refused first, as on a machine that has never heard of them.
"""

import importlib
import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

HIDDEN = ("configuration_zoo", "modeling_zoo", "description_zoo", "conversion", "zoo")


class Refusal(MetaPathFinder):
    """Comes before every other finder, the one of an editable install included."""

    def find_spec(self, name, path=None, target=None):
        if name in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def proof() -> str:
    """The error each of the hidden packages gives; raises AssertionError if one can be imported."""
    for name in HIDDEN:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            message = str(error)
        else:
            raise AssertionError(f"{name} can be imported")
        if name == "modeling_zoo":
            shown = message
    return shown


def main(folder, prompt, new_tokens, answer_file, revision=None) -> None:
    sys.meta_path.insert(0, Refusal())
    import_error = proof()

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = {"revision": revision, "trust_remote_code": True} if revision else {"trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where)
    tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    input_ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(input_ids).logits[0].tolist()
        tokens = model.generate(input_ids, max_new_tokens=int(new_tokens), do_sample=False)[0].tolist()
    answer = {"class": f"{type(model).__module__}.{type(model).__name__}", "import_error": import_error}
    answer |= {"input_ids": input_ids[0].tolist(), "logits": logits, "tokens": tokens}
    answer["text"] = tokenizer.decode(tokens, skip_special_tokens=True)
    Path(answer_file).write_text(json.dumps(answer))


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(f"usage: {Path(sys.argv[0]).name} FOLDER PROMPT NEW_TOKENS ANSWER.json [REVISION]")
    main(*sys.argv[1:])
