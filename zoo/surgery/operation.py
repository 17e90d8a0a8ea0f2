"""What an operation is: which fields it changes, how exact it is, and which tensors become which."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from configuration_zoo import ZooConfig
from conversion import ConversionError
from conversion.engine.ops import Context, Op
from conversion.engine.rules import Rule

# What the classes of exactness promise; the word is what is printed and what a test asserts.
BITS, ARITHMETIC, WHEN, APPROXIMATE = "bits", "arithmetic", "when", "approximate"
# Relative to the largest logit: what the order of float32 sums may change, as for `zoo verify`.
TOLERANCE = 2e-5
# Sizes of recurrences, which follow from those of attention where nothing is said.
OF_RECURRENCES = ("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
# Of every kind of attention.
FOR_HEADS = {"num_attention_heads", "num_key_value_heads"}
# Rows from which a matrix is multiplied the same way however many more it has: of fewer, the libraries that multiply
# matrices take the sums in another order (MKL below 12, in float32).
FEWEST_ROWS = 16


class SurgeryError(ConversionError):
    """An operation that cannot be done; one sentence says why and what to do instead."""


@dataclass(frozen=True)
class Exactness:
    """`word`: "bits" (the same bits), "arithmetic" (equal in real numbers, 2e-5 relative in float32), "when" (equal
    under `condition`), "approximate" (calibrated; what it costs is measured)."""

    word: str
    condition: str = ""
    length: int | None = None  # of texts for which it is so, None: any

    def __str__(self) -> str:
        return f"{self.word} {self.condition}".strip()


def bits_of(*rows: int) -> Exactness:
    """Of an operation that only gives matrices other numbers of `rows`, before and after: the same bits, but for
    matrices so small that their sums are taken in another order."""
    return Exactness(BITS if min(rows) >= FEWEST_ROWS else ARITHMETIC)


def up_to(length: int) -> Exactness:
    """Equal for texts that are not longer."""
    return Exactness(WHEN, f"length <= {length}", length)


@dataclass
class Request:
    """What an operation is asked for: values of `fields`, in `layers`, by `method` (None: its default)."""

    fields: dict[str, Any]
    layers: list[int]
    method: str | None = None
    every: bool = True  # whether `layers` are all that the operation could change
    seed: int = 0
    tokens: list[int] | None = None  # the numbers of those that stay, where an operation chooses tokens

    def get(self, name: str, default: Any = None) -> Any:
        value = self.fields.get(name)
        return default if value is None else value


@dataclass(frozen=True)
class Need:
    """A statistic of a calibration: `kind` "moment" is E[x xᵀ] `[D + 1, D + 1]` of what the module reads, with a last
    channel that is one (so that means are in it); "firing" that of (x, 1, |h|), x what an MLP reads and h what its
    output projection does; "normed" `[2, n]` E[y ŷ] and E[ŷ²] of what it gives, ŷ normed over all channels or
    ("normed 8") so many of them; "routed" `[2, E]` what each expert gives, weight · ‖output‖, and to how many
    tokens."""

    module: str
    kind: str = "moment"


# {(layer, module): tensor}
Statistics = dict[tuple[int, str], Tensor]


@dataclass(frozen=True)
class Example:
    """A row of the table of `zoo surgery SOURCE`: what would be set, how exact, and what it does to the cache."""

    fields: dict[str, Any]
    exactness: Exactness
    note: str = ""
    method: str | None = None
    needs_text: bool = False  # to be done at all


class Make(Op):
    """`function(ctx, *tensors)` gives the tensors of the other side. It goes one way: surgery changes a model for good.

    Where the tensors have no numbers yet the plan is being checked; a function of statistics is not asked then, and
    `shapes` of the new model's tensors stand for what it gives.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], shapes: Callable[[Context], list] | None = None):
        self.function, self.shapes = function, shapes

    def forward(self, tensors: list, ctx: Context) -> list:
        if self.shapes is not None and any(getattr(tensor, "is_meta", False) for tensor in tensors):
            return [tensors[0].new_empty(shape) for shape in self.shapes(ctx)]
        return list(self.function(ctx, *tensors))

    def backward(self, tensors: list, ctx: Context) -> list:
        """Raises ValueError: there is no inverse."""
        raise ValueError("an operation of surgery goes one way")


@dataclass
class Operation:
    """Base of the operations: data, and pure functions of configs and tensors.

    `leads` are the fields a change of which is this operation, `takes` further ones it may set; `applied` is the name
    of an operation that changes no field. `methods` are ways of the same change, the first of which is the default.
    """

    name: str = ""
    leads: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("mixer",)  # what of a layer changes: "mixer", "mlp" or both
    fitting_steps: int = 0  # of training on outputs, before the cost of a change says anything
    renumbers: bool = False  # whether layers change their numbers
    invents: bool = False  # whether the new model has parameters that say nothing yet
    applied: str = ""

    def matches(self, config: ZooConfig, fields: dict[str, Any]) -> bool:
        """Whether these wanted values are this operation's."""
        raise NotImplementedError

    def examples(self, config: ZooConfig) -> list[Example]:
        """What could be asked for here; [] where nothing can."""
        raise NotImplementedError

    def layers(self, config: ZooConfig, fields: dict[str, Any]) -> list[int]:
        """The layers the operation can change."""
        return list(range(config.num_hidden_layers))

    def number_to_choose(self, config: ZooConfig, fields: dict[str, Any]) -> int | None:
        """How many layers are to be chosen by what they cost where none are named; None: all that can be."""
        return None

    def for_one(self, config: ZooConfig, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields that change one layer alone, to see what it costs."""
        return fields

    def check(self, config: ZooConfig, request: Request) -> None:
        """Raises SurgeryError for what cannot be done."""

    def exactness(self, config: ZooConfig, request: Request) -> Exactness:
        raise NotImplementedError

    def keeps(self, config: ZooConfig, request: Request) -> bool:
        """Whether tokens are to be chosen for `request.tokens`."""
        return False

    def needs(self, config: ZooConfig, request: Request) -> list[Need]:
        """Statistics of a calibration."""
        return []

    def config(self, config: ZooConfig, request: Request) -> dict[str, Any]:
        """Fields of the new config that differ; None takes a field out."""
        raise NotImplementedError

    def rules(self, config: ZooConfig, new: ZooConfig, request: Request, statistics: Statistics) -> list[Rule]:
        """Tensors here → tensors there; what no rule names stays as it is."""
        return []

    def changed(self, config: ZooConfig, request: Request) -> list[str]:
        """What changes, for healing: "3.mixer" is the mixer of layer 3."""
        return [f"{layer}.{part}" for layer in request.layers for part in self.parts]


def for_layers(config: ZooConfig, request: Request, values: dict[str, Any]) -> dict[str, Any]:
    """Fields of the new config that give `values` to all layers, or to those of the request alone."""
    # Layers of other kinds read some of the same fields.
    alike = {*config.attention_mixers, None} <= {config.attention_mixers[layer] for layer in request.layers} | {None}
    if request.every and (alike or not FOR_HEADS & values.keys()):
        return values
    own = {str(layer): dict(fields) for layer, fields in own_fields(config).items()}
    for layer in request.layers:
        own[str(layer)] = own.get(str(layer), {}) | values
    return {"per_layer_config": own}


@contextmanager
def alike_layers(name: str) -> Iterator[None]:
    """Inside, a field that layers have values of their own of, and that an operation reads for all of them, is refused:
    raises SurgeryError with its name."""
    try:
        yield
    except RuntimeError as error:  # transformers has a class of its own for it
        field, _, rest = str(error).partition(" is a per-layer attribute")
        if not rest:
            raise
        raise SurgeryError(
            f"{name}: layers have {field} of their own in per_layer_config; it takes one for all."
        ) from error


def refuse_values(values: dict[str, tuple[Any, Any]]) -> None:
    """Raises SurgeryError for the first of {name: (value, kinds)} that is of another kind; None is of every one."""
    for name, (value, kinds) in values.items():
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool) and kinds is not bool):
            word = {int: "a whole number", str: "a word", list: "a list"}.get(kinds, "a number")
            raise SurgeryError(f"{name}={value!r} is not {word}.")


def as_they_are(config: ZooConfig, *names: str) -> dict[str, Any]:
    """Fields of the new config that keep what these say, for each layer where layers differ, whatever they would
    otherwise follow from; what says nothing is left out."""
    alike = [name for name in names if not has_own(config, name)]
    kept = {name: getattr(config, name) for name in alike if getattr(config, name, None) is not None}
    if differ := [name for name in names if name not in alike]:
        own = {layer: dict(fields) for layer, fields in own_fields(config).items()}
        for layer in range(config.num_hidden_layers):
            one = config.per_layer_config[layer]
            own[layer] = own.get(layer, {}) | {name: getattr(one, name) for name in differ}
        kept["per_layer_config"] = {str(layer): fields for layer, fields in own.items()}
    return kept


def has_own(config: ZooConfig, *names: str) -> bool:
    """Whether layers have values of their own of one of these fields."""
    return bool(config.is_heterogeneous and set(names) & set(config.per_layer_attributes or ()))


def own_fields(config: ZooConfig) -> dict[int, dict[str, Any]]:
    """What `per_layer_config` of config.json says, by layer."""
    return {int(layer): own for layer, own in (config.to_diff_dict().get("per_layer_config") or {}).items()}


def in_layers(layers: Sequence[int]) -> Callable[[Context], bool]:
    """`where=` of a rule that holds in these layers alone."""
    chosen = set(layers)
    return lambda ctx: ctx.layer in chosen
