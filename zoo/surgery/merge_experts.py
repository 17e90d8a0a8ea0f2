"""Experts from models (mergekit-moe): each model's MLPs become experts beside each other, all else is the base's.

base_model: owner/base              gate_mode     a row of the router is, of the prompts of its expert,
gate_mode: hidden                     hidden        the mean of what the router reads, positive - negative
experts_per_token: 2                  cheap_embed   the mean of the embeddings, the same in all layers
experts:                              random        drawn
  - source_model: owner/one
    positive_prompts: ["..."]
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from configuration_zoo import ZooConfig
from conversion.engine.transfer import parse_dtype
from conversion.engine.zoo_side import expected_tensors

from .calibration import recorded
from .experts import ROUTER_STD, Experts
from .merge_plan import EXPERT_KEYS, refuse_others
from .merging import open_all
from .operating import State, changed_config, stage
from .operation import Request, SurgeryError, refuse_values
from .report import Done, Report
from .streaming import runnable
from .tensors import Tensors
from .texts import token_ids

PROMPT_KEYS = {"source_model", "positive_prompts", "negative_prompts"}
MODES = ("hidden", "cheap_embed", "random")
EMBEDDING = "model.embed_tokens.weight"


@dataclass
class ExpertSource:
    """A model, and what its expert is for."""

    model: str
    positive: list[str] = field(default_factory=list)
    negative: list[str] = field(default_factory=list)


def experts_of_models(content: dict[str, Any], dtype: Any, seed: int, progress: bool) -> tuple[State, Report]:
    """The model as it would be read now, and what is said of it. Raises SurgeryError for keys that mean nothing,
    models of another form, and prompts that are missing."""
    sources, mode = parse_experts(content)
    base, active = content["base_model"], content.get("experts_per_token", 2)
    models = open_all(list(dict.fromkeys([base, *(source.model for source in sources)])), progress)
    first = models[base]
    operation, fields = Experts(), {"num_experts": len(sources), "num_experts_per_tok": active}
    request = Request(fields, operation.layers(first.config, fields), "copies", seed=seed)
    if not request.layers:
        raise SurgeryError("base_model has no dense MLP that could become an expert.")
    operation.check(first.config, request)
    config = changed_config(first.config, operation.config(first.config, request))
    kind = parse_dtype(dtype or content.get("dtype"))
    if kind is not None:
        config.dtype = kind
    routers = router_rows(first, sources, mode, request.layers, seed)
    given = [models[source.model].tensors for source in sources]
    tensors = ExpertsOfModels(first.tensors, given, config, routers, kind)
    state = State(first.source, config, tensors, seed=seed, progress=progress)
    said = {"base_model": base, "experts": [source.model for source in sources], "gate_mode": mode} | fields
    done = Done("experts from models", said, {}, request.layers, "approximate", mode)
    return state, Report(base, None, [done], stage(first.config), stage(config))


def parse_experts(content: dict[str, Any]) -> tuple[list[ExpertSource], str]:
    """Raises SurgeryError for what a plan of experts cannot say."""
    refuse_others(content, EXPERT_KEYS, "the plan")
    refuse_values({"experts": (content["experts"], list), "base_model": (content.get("base_model"), str)})
    refuse_values({"experts_per_token": (content.get("experts_per_token"), int)})
    if content.get("shared_experts"):
        raise SurgeryError("shared_experts: only routed experts are made of models.")
    if not isinstance(content.get("base_model"), str):
        raise SurgeryError("base_model is missing: all but the experts is its.")
    mode = content.get("gate_mode", "hidden")
    if mode not in MODES:
        raise SurgeryError(f"gate_mode={mode!r} is none of {list(MODES)}.")
    sources = []
    for one in content["experts"] or []:
        refuse_others(one, PROMPT_KEYS, "an expert")
        refuse_values({name: (one.get(name), list) for name in ("positive_prompts", "negative_prompts")})
        prompts = [one.get(name) or [] for name in ("positive_prompts", "negative_prompts")]
        source = ExpertSource(one.get("source_model"), *prompts)
        if not isinstance(source.model, str):
            raise SurgeryError(f"{one!r} names no source_model.")
        if mode != "random" and not source.positive:
            raise SurgeryError(f"{source.model}: positive_prompts are missing; or take gate_mode: random.")
        sources.append(source)
    if len(sources) < 2:
        raise SurgeryError("experts: name two models at least.")
    return sources, mode


@torch.no_grad()
def router_rows(
    first: State, sources: list[ExpertSource], mode: str, layers: list[int], seed: int
) -> dict[int, Tensor]:
    """{layer: `[E, D]`}, rows of length one."""
    width, generator = first.config.hidden_size, torch.Generator().manual_seed(seed)
    if mode == "random":
        return {layer: torch.randn(len(sources), width, generator=generator) * ROUTER_STD for layer in layers}
    model = runnable(first.config, first.tensors)
    rows: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for source in sources:
        means = [prompt_means(model, first, prompts, mode, layers) for prompts in (source.positive, source.negative)]
        for layer in layers:
            row = means[0][layer] - (means[1][layer] if source.negative else 0)
            rows[layer].append(row / row.norm().clamp(min=1e-8))
    return {layer: torch.stack(found).float() for layer, found in rows.items()}


def prompt_means(model: Any, first: State, prompts: list[str], mode: str, layers: list[int]) -> dict[int, Tensor]:
    """{layer: the mean over all tokens `[D]`}, zeros for no prompts."""
    means = {layer: torch.zeros(first.config.hidden_size, dtype=torch.float64) for layer in layers}
    for prompt in prompts:
        ids = token_ids([prompt], first.source.folder)[None, : first.config.max_position_embeddings]
        if mode == "cheap_embed":
            mean = model.get_input_embeddings()(ids)[0].mean(0).double()
            found = dict.fromkeys(layers, mean)
        else:
            with recorded(model, {(layer, "mlp"): "moment" for layer in layers}) as sums:
                model.model(ids, use_cache=False)
            found = {layer: sums[layer, "mlp"][-1, :-1] / ids.numel() for layer in layers}
        for layer in layers:
            means[layer] += found[layer] / len(prompts)
    return means


class ExpertsOfModels:
    """The tensors of the base, its MLPs replaced by those of all models side by side."""

    def __init__(self, base: Tensors, models: list[Tensors], config: ZooConfig, routers: dict[int, Tensor], dtype: Any):
        self.base, self.models, self.routers = base, models, routers
        own = next(tensor.dtype for tensor in base.headers.values() if tensor.is_floating_point())
        self.headers = {}
        for name, tensor in expected_tensors(config).tensors.items():
            kind = base.headers[name].dtype if name in base.headers else own
            kind = dtype if dtype is not None and kind.is_floating_point else kind
            self.headers[name] = torch.empty(tensor.shape, dtype=kind, device="meta")

    def read(self, name: str) -> Tensor:
        if name in self.base.headers:
            made = self.base.read(name)
        elif name.endswith("mlp.gate.weight"):
            made = self.routers[int(name.split(".")[2])]
        else:
            made = torch.stack([self.expert(model, name) for model in self.models])
        return made.to(self.headers[name].dtype)

    def expert(self, model: Tensors, name: str) -> Tensor:
        """The part of one model: "...experts.gate_up_proj_bias" is gate_proj.bias and up_proj.bias of its MLP."""
        before, _, last = name.partition("experts.")
        kind = "bias" if last.endswith("_bias") else "weight"
        last = last.removesuffix("_bias")
        parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
        return torch.cat([model.read(f"{before}{part}.{kind}") for part in parts])
