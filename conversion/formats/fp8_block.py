"""Written, not only read: DeepSeek-V3's FP8, matrices in e4m3 with a float32 scale for every block of 128 × 128.

W ≈ float32(q) · scale[i // 128, j // 128], the largest number of a block at 448 (arXiv 2412.19437, §3.3). vLLM,
transformers and zoo read it. Which matrices are stored so is decided by `engine/quantizing.py`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from . import fp8

BLOCK = (128, 128)
_FP8 = torch.float8_e4m3fn


def stored_alike(scheme: dict[str, Any]) -> bool:
    """Whether a `quantization_config` describes what is written here."""
    return scheme.get("quant_method") == "fp8" and tuple(scheme.get("weight_block_size") or ()) == BLOCK


@dataclass(frozen=True)
class Fp8Block:
    """The matrices `chosen` are written in eight bits, every other tensor as it is; `plain` are the modules beside
    them whose weights have two dimensions or more, as readers want to be told."""

    chosen: frozenset[str]
    plain: tuple[str, ...]

    method = "fp8-block"

    def headers(self, plain: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is written of a model with the tensors `plain`, as meta tensors."""
        written = {}
        for name, tensor in plain.items():
            written |= self._in_blocks(name, tensor) if name in self.chosen else {name: tensor}
        return written

    def written(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Every tensor as it is stored. Raises ConversionError for a matrix with numbers that are not finite."""
        for name, tensor in tensors:
            yield from self._encoded(name, tensor) if name in self.chosen else [(name, tensor)]

    def in_parts(
        self, name: str, rows: Callable[[int, int], Tensor], shape: tuple[int, int], at_once: int
    ) -> Iterator[tuple[str, int, Tensor]]:
        """(stored name, the number it begins at, tensor) of a matrix of which `rows` gives some: so many bytes of
        whole blocks at a time."""
        step = max(1, at_once // (2 * BLOCK[0] * shape[1])) * BLOCK[0]
        for start in range(0, shape[0], step):
            for part, tensor in self._encoded(name, rows(start, min(start + step, shape[0]))):
                high = 1 if part == name else BLOCK[0]
                yield part, start // high * tensor.shape[1], tensor

    def _encoded(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        names, like = zip(*self._in_blocks(name, tensor).items(), strict=True)
        try:
            yield from zip(names, fp8.encode(tensor, *like, block=BLOCK), strict=True)
        except ConversionError as error:
            raise ConversionError(f"{name!r} cannot be stored in {self.method}: {error}") from error

    def unused(self) -> Iterator[tuple[str, Tensor]]:
        """Nothing is stored beside the weights."""
        return iter(())

    def say(self, raw: dict[str, Any], folder: Path) -> dict[str, Any]:
        """config.json with the scheme."""
        scheme = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(BLOCK),
            "modules_to_not_convert": list(self.plain),
        }
        return raw | {"quantization_config": scheme}

    @staticmethod
    def _in_blocks(name: str, matrix: Tensor) -> dict[str, Tensor]:
        """{stored name: meta tensor} of the numbers and the scales of one matrix `[rows, columns]`."""
        grid = [-(-side // block) for side, block in zip(matrix.shape, BLOCK, strict=True)]
        with torch.device("meta"):
            return {name: torch.empty(matrix.shape, dtype=_FP8), f"{name}_scale_inv": torch.empty(grid)}
