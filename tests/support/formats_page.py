"""The table of docs/formats.md, made from the files that read formats and layouts.

python tests/support/formats_page.py    writes it
"""

import re
from pathlib import Path

from conversion.formats import fp8
from conversion.formats.schemes import formats
from conversion.layouts.known import LAYOUTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
BEGIN, END = "<!-- the table: python tests/support/formats_page.py -->\n", "<!-- end -->\n"
# What the tests compare with, by the name of the file.
JUDGES = {
    "awq": "words written bit by bit",
    "bitnet": "transformers' `pack_weights`, `WeightQuant`",
    "bitsandbytes": "bitsandbytes' `quantize_4bit`, `quantize_blockwise`, `int8_vectorwise_quant`",
    "compressed_tensors": "compressed-tensors' own compressors and scales",
    "fp8": "number by number; transformers' `Fp8Dequantize`; what vLLM and transformers read",
    "gptq": "words written bit by bit, 2, 3, 4, 8 bits, any order of groups",
    "modelopt": "number by number",
    "mxfp4": "number by number; transformers' loading of gpt-oss",
    "torchao": "number by number",
    "deepseek_inference": "the publisher's splitting written row by row",
    "gguf": "gguf-py's writer, all block types; llama.cpp's converter",
    "params": "the publisher's layout written row by row; logits of its rotation",
}
OUT = {fp8: "`--quantize fp8-block`"}


def title(module) -> str:
    """The first sentence of its docstring, without who published it."""
    text = re.sub(r" \([^)]*\d{4}[^)]*\)", "", " ".join(module.__doc__.split()))
    return text.split(". ")[0].removesuffix(".").split(": `X.")[0].replace("|", "\\|")


def table() -> str:
    rows = ["| `quant_method`, or layout | what it is | in | back | out | judged by |", "|---|---|---|---|---|---|"]
    plain = "bfloat16, float16, float32, float64 in safetensors, with any prefix of a training wrapper"
    rows.append(f"| plain | {plain} | yes | bit for bit | yes | transformers' classes |")
    rows.append("| plain | pickles (`.bin`, `.pth`) | `--allow-pickle` | as safetensors | no | the same safetensors |")
    modules = dict.fromkeys(formats().values())
    for module in modules:
        name = module.__name__.rpartition(".")[2]
        methods = ", ".join(f"`{method}`" for method in module.METHODS)
        back = "bit for bit, changed weights again"
        rows.append(f"| {methods} | {title(module)} | yes | {back} | {OUT.get(module, 'no')} | {JUDGES[name]} |")
    for module in LAYOUTS:
        name = module.__name__.rpartition(".")[2]
        rows.append(f"| {name} | {title(module)} | yes | plain, in transformers' layout | no | {JUDGES[name]} |")
    return "\n".join(rows) + "\n"


def with_table(page: str) -> str:
    """The page with the table between its marks."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
