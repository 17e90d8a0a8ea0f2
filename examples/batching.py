"""Continuous batching: requests of any length share one paged cache. batching.py FOLDER PROMPT [PROMPT ...]"""

from command_line import model, parser, run
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig
from transformers.utils import logging

from modeling_zoo import ZooForCausalLM  # noqa: F401  (the installed classes run the folder)


def main():
    options = parser(__doc__)
    options.add_argument("folder", type=model)
    options.add_argument("prompts", nargs="+")
    answer(**vars(options.parse_args()))


def answer(folder, prompts):
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    greedy = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=loaded.config.eos_token_id)
    # Without a number of pages it takes nine tenths of the machine's memory.
    pages = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=128)
    inputs = [tokenizer(prompt).input_ids for prompt in prompts]
    found = loaded.generate_batch(inputs, generation_config=greedy, continuous_batching_config=pages)
    found = dict(sorted(found.items()))
    for answer in found.values():
        # Together: a tokenizer may drop the space before the first word of what it is given.
        print(tokenizer.decode(answer.prompt_ids + answer.generated_tokens, skip_special_tokens=True))


if __name__ == "__main__":
    run(main)
