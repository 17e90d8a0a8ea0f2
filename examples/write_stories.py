"""Let the small model in examples/stories260K write stories, to train another model on: text without a download.

    python examples/write_stories.py --count 8000 --output output/stories.txt

Each is sampled from its beginning (temperature 0.9, top-p 0.95); a line <|endoftext|> stands between two.
"""

import argparse
from pathlib import Path

import torch
from command_line import run
from tqdm import tqdm
from transformers import AutoTokenizer
from transformers.utils import logging

import zoo

FOLDER = Path(__file__).resolve().parent / "stories260K"


def write(model, tokenizer, count: int, tokens: int) -> list[str]:
    """`count` stories of at most `tokens` tokens, those that came to no end cut after their last sentence."""
    begin = torch.full((count, 1), tokenizer.bos_token_id)
    how = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": 0, "pad_token_id": tokenizer.eos_token_id}
    output = model.generate(begin, attention_mask=torch.ones_like(begin), max_new_tokens=tokens, **how)
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    return [text[: text.rfind(".") + 1].strip() for text in texts if "." in text]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--tokens", type=int, default=255, help="of a story, at most")
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/stories.txt"))
    options = parser.parse_args()
    logging.set_verbosity_error()
    torch.manual_seed(options.seed)
    model, tokenizer = zoo.load(FOLDER).eval(), AutoTokenizer.from_pretrained(FOLDER)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    stories = []
    with tqdm(total=options.count, unit="story") as bar:
        while len(stories) < options.count:
            size = min(options.batch, options.count - len(stories))
            stories += write(model, tokenizer, size, options.tokens)
            bar.update(len(stories) - bar.n)
    options.output.write_text("\n<|endoftext|>\n".join(stories) + "\n", encoding="utf-8")
    print(f"{len(stories):,} stories, {options.output.stat().st_size:,} bytes in {options.output}")


if __name__ == "__main__":
    run(main)
