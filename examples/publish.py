"""publish.py FOLDER OWNER/NAME: a model with its tokenizer onto the Hub, then an adapter of it, both loaded by name.

`zoo push FOLDER OWNER/NAME` does the first in one commit, with all that lies in the folder. HF_TOKEN says who asks.
"""

from command_line import model, parser, run
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def main() -> None:
    options = parser(__doc__)
    options.add_argument("folder", type=model)
    options.add_argument("name", metavar="OWNER/NAME")
    publish(**vars(options.parse_args()))


def publish(folder: str, name: str) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).push_to_hub(name)
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True).push_to_hub(name)

    # By its name from here on, so that the adapter knows where its base is.
    base = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, **base.lora_targets()))
    adapted.push_to_hub(f"{name}-lora")

    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    adapted = AutoPeftModelForCausalLM.from_pretrained(f"{name}-lora", trust_remote_code=True)
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    tokens = adapted.generate(**inputs, max_new_tokens=12, do_sample=False)
    print(f"{type(adapted.get_base_model()).__module__}: {tokenizer.decode(tokens[0], skip_special_tokens=True)}")


if __name__ == "__main__":
    run(main)
