"""What `zoo train` reads: a YAML file of sections, each with named fields, and `--set section.field=value` over it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from configuration_zoo.field_kinds import nearest

from ..yaml_files import parse_yaml, read_table


class RecipeError(ValueError):
    """A recipe says something that cannot be done; the message says what and how to put it right."""


@dataclass(kw_only=True)
class TokenizerRecipe:
    """Where tokens come from."""

    path: str | None = None  # folder or Hub id of a tokenizer to take; None: one is trained on the text
    kind: str = "bpe"  # what is trained: "bpe" (byte-level, no unknown text) or "bytes" (a token is a byte)
    vocab_size: int = 4096  # of a trained bpe
    train_bytes: int = 50_000_000  # how much of the text it is trained on


@dataclass(kw_only=True)
class DataRecipe:
    """What is trained on. One of `files` and `dataset`."""

    files: list[str] = field(default_factory=list)  # .txt, .jsonl, .parquet; * matches; relative to the recipe
    dataset: str | None = None  # a data set of the Hub or a folder, for datasets.load_dataset
    dataset_config: str | None = None
    split: str = "train"
    streaming: bool = True  # a data set is read as it is needed, never held as a whole
    text_column: str = "text"
    separator: str | None = None  # what stands between the documents of a .txt; None: each file is one document
    length: int = 512  # tokens of a row
    packing: str = "best_fit"  # "best_fit": whole documents; "concatenated": documents one behind another, cut anywhere
    buffer: int = 10_000  # documents that best-fit packing chooses from at a time
    held_out: float = 0.02  # share of the documents, or of the only one, that is never trained on
    held_out_files: list[str] = field(default_factory=list)  # text to measure on instead
    held_out_rows: int = 64  # rows to measure on, at most


@dataclass(kw_only=True)
class OptimizerRecipe:
    """How weights move; learning rate, decay, betas and clipping are fields of `training`."""

    name: str = "adamw"  # or "muon": matrices of the layers by Muon, the others by AdamW
    muon_learning_rate: float | None = None  # None: training.learning_rate
    mup_base_width: int | None = None  # the hidden_size that the learning rate was chosen at; None: no muP
    decay_share: float = 0.2  # of the steps, over which warm-up-stable-decay goes down
    balance_rate: float = 5e-3  # by which the correction bias of experts moves a step; 1e-3 for weeks of training


@dataclass(kw_only=True)
class SamplesRecipe:
    """Texts that are written during training."""

    every: int = 0  # steps; 0: none
    prompts: list[str] = field(default_factory=lambda: [""])
    max_new_tokens: int = 64
    temperature: float = 0.8  # 0: greedy


@dataclass(kw_only=True)
class RunRecipe:
    """Around the training."""

    loss_picture: bool = True  # loss.png, where matplotlib is installed
    peak_flops: float | None = None  # of the machine, FLOPs a second; None: known GPUs by name, a CPU is measured
    push: str | None = None  # owner/name to push the finished model to
    push_private: bool = False


SECTIONS = {"tokenizer": TokenizerRecipe, "data": DataRecipe, "optimizer": OptimizerRecipe, "samples": SamplesRecipe}
SECTIONS |= {"run": RunRecipe}
# Beside fields of ZooConfig: what a model starts from. `path` is a folder or Hub id whose weights are trained further.
MODEL_STARTS = ("path", "preset")
# What a recipe that says nothing trains with.
TRAINING = {
    "output_dir": "output", "max_steps": 1000, "learning_rate": 3e-3, "weight_decay": 0.1, "adam_beta2": 0.95,
    "max_grad_norm": 1.0, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 16,
    "lr_scheduler_type": "warmup_stable_decay", "logging_steps": 10, "logging_first_step": True,
    "eval_strategy": "steps", "eval_steps": 100, "save_strategy": "steps", "save_steps": 500, "save_total_limit": 2,
    "report_to": "none", "seed": 0,
}  # fmt: skip


@dataclass(kw_only=True)
class Recipe:
    """A whole recipe: fields of ZooConfig in `model`, of transformers' TrainingArguments in `training`."""

    folder: Path = Path()  # what file names are relative to
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    samples: SamplesRecipe = field(default_factory=SamplesRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def as_dict(self) -> dict[str, Any]:
        """What a YAML file of this recipe says."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}


def read_recipe(source: "str | Path | Mapping", overrides: Iterable[str] = ()) -> Recipe:
    """A YAML file or a dict of sections, then each `section.field=value` of `overrides`; the section can be left out
    where one alone has such a field. Raises RecipeError for a name that nothing has and a value of another type."""
    said, folder = (dict(source), Path()) if isinstance(source, Mapping) else (read_yaml(source), Path(source).parent)
    known = {*SECTIONS, "model", "training"}
    for name, section in said.items():
        if name not in known:
            raise RecipeError(f"{name!r} is not a section of a recipe.{nearest(str(name), sorted(known))}")
        if not isinstance(section, dict | None):
            raise RecipeError(f"{name}: a section is a table of fields, not {section!r}.")
    sections = {name: dict(said.get(name) or {}) for name in known}
    for override in overrides:
        name, value = parse_override(override)
        section, name = place(name)
        put(sections[section], name, value)
    made = {name: make_section(name, kind, sections[name]) for name, kind in SECTIONS.items()}
    check_names("model", sections["model"], {*config_fields(), *MODEL_STARTS})
    check_names("training", sections["training"], training_fields())
    check_types(sections["training"])
    recipe = Recipe(folder=folder, model=sections["model"], training=TRAINING | sections["training"], **made)
    check_choices(recipe)
    return recipe


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds one table. Raises RecipeError for anything else."""
    return read_table(path, RecipeError, "a recipe")


def parse_override(text: str) -> tuple[str, Any]:
    """`name=value`, the value as YAML has it. Raises RecipeError without an =."""
    name, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"--set {text}: write it as section.field=value.")
    try:
        return name.strip(), parse_yaml(value)
    except ValueError:
        return name.strip(), value


def place(name: str) -> tuple[str, str]:
    """(section, field) of a name that says its section or leaves it out. Raises RecipeError for a name that no section,
    or more than one, has."""
    first, _, rest = name.partition(".")
    if rest and first in ({*SECTIONS, "model", "training"}):
        return first, rest
    holders = {section: {one.name for one in fields(kind)} for section, kind in SECTIONS.items()}
    holders |= {"model": {*config_fields(), *MODEL_STARTS}, "training": training_fields()}
    found = [section for section, names in holders.items() if first in names]
    if len(found) == 1:
        return found[0], name
    if found:
        raise RecipeError(f"--set {name}: write {' or '.join(f'{section}.{name}' for section in found)}.")
    raise RecipeError(f"--set {name}: nothing has this field.{nearest(first, sorted(set().union(*holders.values())))}")


def put(section: dict[str, Any], name: str, value: Any) -> None:
    """Sets `initializer.type` as a field of the table `initializer`. Raises RecipeError where that is no table."""
    group, _, key = name.partition(".")
    if key:
        if not isinstance(section.get(group), dict | None):
            raise RecipeError(f"{name}: {group} is {section[group]!r} and has no field {key!r}.")
        section[group] = {**(section.get(group) or {}), key: value}
    else:
        section[group] = value


def make_section(name: str, kind: type, values: dict[str, Any]) -> Any:
    """The dataclass of a section. Raises RecipeError for a field it does not have or a value of another type."""
    check_names(name, values, {one.name for one in fields(kind)})
    made = kind(**values)
    for one in fields(kind):
        value = getattr(made, one.name)
        if one.type is float | None or one.type is float:
            value = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
            setattr(made, one.name, value)
        if not is_of_type(value, one.type):
            raise RecipeError(f"{name}.{one.name}={value!r} must be {getattr(one.type, '__name__', one.type)}.")
    return made


def is_of_type(value: Any, kind: Any) -> bool:
    """Whether a value is what a field of a recipe declares: a class, `class | None`, or list[class]."""
    if getattr(kind, "__origin__", None) is list:
        return isinstance(value, list) and all(isinstance(entry, kind.__args__) for entry in value)
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def check_names(section: str, values: dict[str, Any], known: set[str]) -> None:
    """Raises RecipeError for a name that is not `known`, with the nearest that is."""
    for name in values:
        if str(name).partition(".")[0] not in known:
            raise RecipeError(f"{section}.{name} is not a field of {section}.{nearest(str(name), sorted(known))}")


def check_types(values: dict[str, Any]) -> None:
    """Raises RecipeError for a training argument of another type than its field, where this is one for numbers, names
    or yes and no."""
    from transformers import TrainingArguments

    plain = {int, float, str, bool, type(None)}
    for one in fields(TrainingArguments):
        kinds = {*(get_args(one.type) or (one.type,))}
        if one.name in values and kinds <= plain:
            value = values[one.name]
            kinds |= {int} if float in kinds else set()
            if type(value) not in kinds:
                names = " or ".join(sorted(kind.__name__ for kind in kinds - {type(None)}))
                raise RecipeError(f"training.{one.name}={value!r} must be {names}.")


def check_choices(recipe: Recipe) -> None:
    """Raises RecipeError for a word or a number that means nothing, and for no text at all."""
    choices = {
        "tokenizer.kind": ("bpe", "bytes"), "data.packing": ("best_fit", "concatenated"),
        "optimizer.name": ("adamw", "muon"),
    }  # fmt: skip
    for name, allowed in choices.items():
        section, _, key = name.partition(".")
        if (value := getattr(getattr(recipe, section), key)) not in allowed:
            raise RecipeError(f"{name}={value!r} is not one of {list(allowed)}.{nearest(str(value), allowed)}")
    if bool(recipe.data.files) == bool(recipe.data.dataset):
        raise RecipeError("data: say where the text is, either data.files or data.dataset.")
    if recipe.data.length < 2:
        raise RecipeError(f"data.length={recipe.data.length}: a row has at least two tokens.")
    if not 0 < recipe.data.held_out < 1 and not recipe.data.held_out_files:
        raise RecipeError(f"data.held_out={recipe.data.held_out} is a share above 0 and below 1.")


def config_fields() -> set[str]:
    """Names of the fields of ZooConfig."""
    from configuration_zoo import ZooConfig

    return {one.name for one in fields(ZooConfig)}


def training_fields() -> set[str]:
    """Names of the fields of transformers' TrainingArguments."""
    from transformers import TrainingArguments

    return {one.name for one in fields(TrainingArguments) if one.init}


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Puts it beside what it made, as YAML."""
    import yaml

    from modeling_zoo.export import replace_text

    replace_text(path, yaml.safe_dump(json.loads(json.dumps(recipe.as_dict(), default=str)), sort_keys=False))
