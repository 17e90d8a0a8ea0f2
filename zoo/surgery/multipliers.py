"""Constant factors moved into weights, or out of them (Granite, MiniCPM, muP ↔ plain).

residual_multiplier     m     what a branch adds, its last norm or projection · m / m'
embedding_multiplier    e     embedding · e / e'
attention_multiplier    a     queries · a / a'; None stands for d^-½
logits_scaling          s     head · s' / s; where it is tied the final norm, which also undoes e
"""

from typing import Any

from torch import Tensor

from configuration_zoo import ZooConfig
from configuration_zoo.vocabulary import WHOLE_STACK_BLOCKS
from conversion.engine.rules import Rule
from conversion.engine.zoo_side import expected_tensors

from .depth import LAST_NORMS, LAYER, is_last
from .latent_full import ATTENTION
from .norm_offset import offsets
from .operation import ARITHMETIC, Exactness, Example, Make, Operation, Request, Statistics, SurgeryError, has_own

FIELDS = ("residual_multiplier", "embedding_multiplier", "attention_multiplier", "logits_scaling")
PLAIN = {"residual_multiplier": 1.0, "embedding_multiplier": 1.0, "attention_multiplier": None, "logits_scaling": 1.0}
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head", "model.norm"


class Multipliers(Operation):
    def __init__(self):
        super().__init__("constant factors", FIELDS, parts=())

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        return any(name in fields for name in FIELDS)

    def examples(self, config: ZooConfig) -> list[Example]:
        fields = {name: plain for name, plain in PLAIN.items() if getattr(config, name) != plain}
        if "attention_multiplier" in fields:
            own = has_own(config, "head_dim")
            fields["attention_multiplier"] = 1.0 if own else config.head_dim**-0.5
        return [Example(fields, Exactness(ARITHMETIC), "as families without factors")] if fields else []

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for factors that no weight can take."""
        if any(isinstance(value, (int, float)) and value <= 0 for value in request.fields.values()):
            raise SurgeryError(f"{next(iter(request.fields))}: a factor must be more than 0.")
        if "attention_multiplier" in request.fields:
            if other := {name for name in config.mixer_types if name not in (None, "grouped_query")}:
                raise SurgeryError(f"attention_multiplier: layers of {min(other)!r} have no queries to take it.")
            if config.qk_norm is not None:
                raise SurgeryError("attention_multiplier: qk_norm makes queries of one size, whatever the weights.")
            if config.position_embedding_type not in ("rope", "none", "learned", "sinusoidal"):
                raise SurgeryError("attention_multiplier: the position bias would be scaled as well.")
        if "residual_multiplier" in request.fields:
            if other := {*WHOLE_STACK_BLOCKS, "shared_block"} & set(config.block_types):
                raise SurgeryError(f"residual_multiplier: block_type={min(other)!r} adds in another way.")
            if config.zero_expert_type == "identity":
                raise SurgeryError("residual_multiplier: zero experts give their input, which no weight scales.")
        of_head = {"logits_scaling", "embedding_multiplier"} & set(request.fields)
        if of_head and config.tie_word_embeddings and not (config.norm_elementwise_affine and config.final_norm):
            raise SurgeryError(f"{min(of_head)}: the head is tied, and no final norm has a weight: untie it first.")
        if "embedding_multiplier" in request.fields and config.position_embedding_type in ("learned", "sinusoidal"):
            raise SurgeryError("embedding_multiplier: positions are added to what is scaled.")

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        return Exactness(ARITHMETIC)

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        return dict(request.fields)

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        shifts, rules = offsets(config), []
        for name, factor in factors(config, new).items():
            if factor != 1.0:
                rules.append(Rule(name, name, scaled(factor, shifts.get(name, 0.0))))
        return rules


def scaled(factor: float, offset: float) -> Make:
    """weight · factor, of what is stored as an offset from one too."""

    def make(ctx: Any, tensor: Tensor) -> list[Tensor]:
        return [((tensor.double() + offset) * factor - offset).to(tensor.dtype)]

    return Make(make)


def factors(config: ZooConfig, new: ZooConfig) -> dict[str, float]:
    """{tensor: what it is multiplied with}."""
    names = expected_tensors(config).tensors
    of_branch = config.residual_multiplier / new.residual_multiplier
    of_embedding = config.embedding_multiplier / new.embedding_multiplier
    of_logits = new.logits_scaling / config.logits_scaling
    found = {name: of_branch for name in names if name.startswith(LAYER) and adds(name, names)}
    found |= {EMBEDDING: of_embedding}
    if config.tie_word_embeddings:
        of_norm = of_logits / of_embedding
        found |= {f"{NORM}.{kind}": of_norm for kind in ("weight", "bias")} | {f"{HEAD}.bias": of_logits}
    else:
        found |= {f"{HEAD}.{kind}": of_logits for kind in ("weight", "bias")}
    for layer in range(config.num_hidden_layers):
        if config.mixer_types[layer] == "grouped_query":
            of_queries = config.attention_scaling(layer) / new.attention_scaling(layer)
            found |= {f"{ATTENTION}q_proj.{kind}".format(i=layer): of_queries for kind in ("weight", "bias")}
    return {name: factor for name, factor in found.items() if name in names}


def adds(name: str, names: Any) -> bool:
    """Whether a tensor is the last of its branch: a norm behind it where there is one, else the projection."""
    layer, _, rest = name.removeprefix(LAYER).partition(".")
    slot = LAST_NORMS[1] if rest.startswith("mlp") else LAST_NORMS[0]
    has_norm = f"{LAYER}{layer}.{slot}.weight" in names
    return is_last(rest) and (rest.startswith(LAST_NORMS) or not has_norm)
