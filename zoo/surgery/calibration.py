"""Statistics of what modules read, over the rows of a text: second moments, never the states themselves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor, nn
from transformers import PreTrainedModel

from .operation import Need, Statistics, SurgeryError

# Tokens of a forward.
BATCH_TOKENS = 2048
Place = tuple[int, str]


def batches(ids: Tensor, tokens: int = BATCH_TOKENS) -> Iterator[Tensor]:
    """Rows `[n, T]` a few at a time."""
    yield from ids.split(max(1, tokens // ids.shape[1]))


@torch.no_grad()
def collect(
    model: PreTrainedModel, needs: Sequence[Need], layers: Sequence[int], ids: Tensor, progress: bool = False
) -> Statistics:
    """{(layer, module): E[z zᵀ]} over all tokens, in float64, of the z that `Need` says. Raises SurgeryError where the
    states are no finite numbers."""
    places = {(layer, need.module): need.kind for need in needs for layer in layers}
    with recorded(model, places) as sums:
        for rows in tqdm(list(batches(ids)), desc="Calibrating", disable=not progress):
            model.model(rows.to(model.device), use_cache=False)
    for (layer, module), total in sums.items():
        if not total.isfinite().all():
            raise SurgeryError(f"layer {layer}: what {module} reads is no finite number in {model.dtype}.")
        total /= ids.numel()
    return sums


@contextmanager
def recorded(model: PreTrainedModel, places: Mapping[Place, str]) -> Iterator[Statistics]:
    """While it is open, every forward adds to the sums what is read at `places`, of the kind said there."""
    recorder = Recorder()
    try:
        for place, kind in sorted(places.items()):
            layer = model.model.layers[place[0]]
            part = layer.mixer_name if place[1] == "mixer" else place[1]
            recorder.watch(place, layer.get_submodule(part), kind, model.config.norm_eps)
        yield recorder.sums
    finally:
        recorder.remove()


class Recorder:
    """Hooks on modules, and the sums of z zᵀ of what they read."""

    def __init__(self):
        self.sums: Statistics = {}
        self._handles: list = []
        self._inputs: dict[Place, Tensor] = {}

    def watch(self, place: Place, module: nn.Module, kind: str, eps: float) -> None:
        """Sums of (x, 1), where MLPs are watched firing of (x, 1, |h|), of experts what each gives; of "normed" outputs
        y ŷ and ŷ²."""
        if kind == "moment":
            self.hook(module, lambda x: self.add(place, x, torch.ones_like(x[..., :1])))
        elif kind.startswith("normed"):
            width = int(kind.removeprefix("normed") or 0)
            self._handles.append(
                module.register_forward_hook(lambda module, args, output: self.compare(place, output, width, eps))
            )
        elif kind == "routed":
            self._handles.append(
                module.register_forward_pre_hook(lambda experts, args: self.count(place, experts, *args))
            )
        else:
            self.hook(module, lambda x: self._inputs.update({place: x}))
            self.hook(
                module.down_proj,
                lambda h: self.add(place, self._inputs.pop(place), torch.ones_like(h[..., :1]), h.abs()),
            )

    def hook(self, module: nn.Module, reads: Callable[[Tensor], None]) -> None:
        """`reads` is called with what the module is given."""

        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            reads(args[0] if args else kwargs["hidden_states"])

        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))

    def count(self, place: Place, experts: nn.Module, x: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """Adds Σ weight · ‖expert(x)‖ and the number of tokens, `[2, E]`, of those that visit each expert."""
        found = torch.zeros(2, experts.num_experts, dtype=torch.float64)
        for expert in chosen.unique().tolist():
            token, slot = torch.where(chosen == expert)
            given = experts.run_expert(x[token], expert).norm(dim=-1)
            found[0, expert], found[1, expert] = (given * weights[token, slot]).sum().item(), len(token)
        self.sum(place, found)

    def compare(self, place: Place, output: Tensor | tuple, width: int, eps: float) -> None:
        """Adds Σ y ŷ and Σ ŷ² over tokens, `[2, n]`, ŷ = y / rms(y) over all channels or each `width` of them."""
        y = (output[0] if isinstance(output, tuple) else output).flatten(0, -2).double()
        parts = y.unflatten(-1, (-1, width or y.shape[-1]))
        normed = (parts * (parts.square().mean(-1, keepdim=True) + eps).rsqrt()).flatten(1)
        self.sum(place, torch.stack(((y * normed).sum(0), normed.square().sum(0))))

    def add(self, place: Place, *states: Tensor) -> None:
        joined = torch.cat([one.flatten(0, -2).double() for one in states], 1)
        self.sum(place, joined.T @ joined)

    def sum(self, place: Place, product: Tensor) -> None:
        self.sums[place] = self.sums[place] + product if place in self.sums else product

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
