"""Several variants of one recipe, each with several seeds: what `zoo sweep` runs.

    sweep.yaml → variants, all of one size or one cost → runs in <output_dir>/<variant>/seed-<n> → a table, a plot

A sweep that is started again goes on: finished runs are read, one that was cut off is resumed, one that failed is tried
again.
"""

import json
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from conversion.errors import sentence

from .recipe import (
    SECTIONS,
    Recipe,
    RecipeError,
    check_names,
    is_of_type,
    place,
    put,
    read_recipe,
    read_yaml,
    write_recipe,
)
from .run import LOG, RECIPE, TOKENIZER, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE, FAILURE = "base.yaml", "error.txt"
# What variants can have in common, beside the recipe.
MATCHES = ("none", "parameters", "active_parameters", "flops")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(kw_only=True)
class SweepRecipe:
    """What `zoo sweep` reads."""

    base: Any = None  # a recipe of `zoo train`: its file, relative to this one, or its sections
    output_dir: str = "output/sweep"
    seeds: list[int] = field(default_factory=lambda: [0])
    # "parameters", "active_parameters": `match_field` of each variant is set so that it has as many as the reference.
    # "flops": each variant is trained for as many steps as cost what those of the reference cost. "none": as they are.
    match: str = "none"
    match_field: str = "intermediate_size"
    match_step: int = 8  # what `match_field` stays a multiple of
    tolerance: float = 0.02  # by which parameters may differ; a variant that cannot come so near is an error
    reference: str | None = None  # a variant; None: the first
    variants: dict = field(default_factory=dict)  # name: sections, or fields, that differ from the base


@dataclass
class Variant:
    """One column of the comparison: its recipe without seed and folder, and what it costs; or why it cannot be run."""

    name: str
    recipe: Recipe | None = None
    cost: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass
class Run:
    """One variant with one seed, in its folder."""

    variant: Variant
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.variant.name}, seed {self.seed}"

    @property
    def recipe(self) -> Recipe:
        one = deepcopy(self.variant.recipe)
        one.training |= {"seed": self.seed, "output_dir": str(self.folder)}
        return one

    def difference(self) -> str | None:
        """The first field in which the run in the folder is of another recipe; None for the same, and where there is
        none."""
        if not (self.folder / RECIPE).exists():
            return None
        wanted = json.loads(json.dumps(self.recipe.as_dict(), default=str))
        held = read_yaml(self.folder / RECIPE)
        for section in {**held, **wanted}:
            here, there = held.get(section) or {}, wanted.get(section) or {}
            for name in {**here, **there}:
                if here.get(name) != there.get(name):
                    return f"{section}.{name} is {here.get(name)!r} there and {there.get(name)!r} now"
        return None

    def finished(self) -> dict[str, Any] | None:
        """{"result", "history"} of this run, if it came to its end; never those of another recipe."""
        if not (self.folder / LOG).exists() or self.difference() is not None:
            return None
        return json.loads((self.folder / LOG).read_text())

    def failure(self) -> str | None:
        """Why it came to no end when it was tried last."""
        path = self.folder / FAILURE
        return path.read_text().partition("\n")[0] if path.exists() and self.finished() is None else None

    def carry_out(self, shows: bool) -> str | None:
        """Trains it, or goes on with it; -> None, or why it came to no end, which is then in its folder, too."""
        try:
            if (difference := self.difference()) is not None:
                raise RecipeError(
                    f"{self.folder} holds a run of another recipe: {difference}. Remove it, or choose another "
                    "output_dir."
                )
            (self.folder / FAILURE).unlink(missing_ok=True)
            train(self.recipe, resume=(self.folder / RECIPE).exists(), shows=shows)
        except Exception as error:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / FAILURE).write_text(f"{sentence(error)}\n\n{traceback.format_exc()}")
            return sentence(error)
        return None


@dataclass
class Sweep:
    """A sweep that has been read and sized."""

    said: SweepRecipe
    output: Path
    variants: list[Variant]

    def runs_of(self, variant: Variant) -> list[Run]:
        """One for each seed; none of a variant that cannot be run."""
        seeds = self.said.seeds if variant.error is None else ()
        return [Run(variant, seed, self.output / variant.name / f"seed-{seed}") for seed in seeds]

    @property
    def runs(self) -> list[Run]:
        """Everything that can be run."""
        return [run for variant in self.variants for run in self.runs_of(variant)]


def sweep(
    source: "str | Path | Mapping",
    overrides: Iterable[str] = (),
    *,
    dry_run: bool = False,
    shows: bool = True,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train every variant with every seed; -> {"variants": rows of the table, "failed": {run: sentence}}, which is also
    in `<output_dir>/sweep.json`, beside `sweep.md` and `sweep.png`.

    `overrides` are of the base recipe. What is wrong with one variant, or stops one run, is noted and does not stop the
    others. Raises RecipeError for a sweep that cannot be read, and for a reference that cannot be built.
    """
    from .variants_table import report, write_report

    say = say or (lambda words: None)
    if dry_run:
        with TemporaryDirectory() as nowhere:
            return report(plan(source, overrides, Path(nowhere)))
    planned = plan(source, overrides)
    runs = planned.runs
    for number, run in enumerate(runs, 1):
        if run.finished() is None:
            say(f"run {number} of {len(runs)}: {run}")
            if (failure := run.carry_out(shows)) is not None:
                say(f"{run}: {failure}")
            write_report(planned)
    return write_report(planned)


def plan(source: "str | Path | Mapping", overrides: Iterable[str] = (), tokenizers: Path | None = None) -> Sweep:
    """Recipes of all variants, sized. Trains the one tokenizer that they share, where none is named, into the output
    folder or `tokenizers`."""
    said, folder = read_sweep(source)
    base, base_folder = read_base(said.base, folder)
    for override in overrides:
        read_recipe(base, [override])
        override_into(base, override)
    output = Path(said.output_dir)
    shared = share_tokenizer(as_recipe(base, base_folder), tokenizers or output)
    base["tokenizer"] = {"path": str(shared.resolve())}
    variants = [made(name, base, base_folder, changes) for name, changes in said.variants.items()]
    return Sweep(said, output, match(variants, said))


def read_sweep(source: "str | Path | Mapping") -> tuple[SweepRecipe, Path]:
    """A YAML file or a dict, and its folder. Raises RecipeError for what has no meaning."""
    raw, folder = (dict(source), Path()) if isinstance(source, Mapping) else (read_yaml(source), Path(source).parent)
    check_names("sweep", raw, {one.name for one in fields(SweepRecipe)})
    said = SweepRecipe(**raw)
    if isinstance(said.tolerance, int) and not isinstance(said.tolerance, bool):
        said.tolerance = float(said.tolerance)
    for one in fields(SweepRecipe):
        if one.type is not Any and not is_of_type(getattr(said, one.name), one.type):
            raise RecipeError(
                f"{one.name}={getattr(said, one.name)!r} must be {getattr(one.type, '__name__', one.type)}."
            )
    if said.match not in MATCHES:
        raise RecipeError(f"match={said.match!r} is not one of {list(MATCHES)}.")
    if not said.seeds or len(set(said.seeds)) != len(said.seeds):
        raise RecipeError(f"seeds={said.seeds}: give at least one, and none twice.")
    if not said.variants:
        raise RecipeError("variants: name at least one, as in `llama: {}`.")
    for name in said.variants:
        if not NAME.fullmatch(str(name)):
            raise RecipeError(f"variants: {name!r} cannot be the name of a folder: use letters, digits and . _ + -")
    said.reference = said.reference or next(iter(said.variants))
    if said.reference not in said.variants:
        raise RecipeError(f"reference={said.reference!r} is not one of the variants {list(said.variants)}.")
    if said.match_step < 1:
        raise RecipeError(f"match_step={said.match_step} must be at least 1.")
    return said, folder


def read_base(base: Any, folder: Path) -> tuple[dict[str, Any], Path]:
    """Its sections, and the folder that its file names are relative to."""
    if isinstance(base, Mapping):
        return deepcopy(dict(base)), folder
    if not isinstance(base, str):
        raise RecipeError("base: name the file of a recipe, or write its sections here.")
    path = folder / base
    return read_yaml(path), path.parent


def as_recipe(sections: dict[str, Any], folder: Path) -> Recipe:
    recipe = read_recipe(sections)
    recipe.folder = folder
    return recipe


def override_into(sections: dict[str, Any], override: str) -> None:
    """`section.field=value` as a part of the base."""
    from .recipe import parse_override

    name, value = parse_override(override)
    change(sections, name, value)


def change(sections: dict[str, Any], name: str, value: Any) -> None:
    """Sets a field, by its name with the section or without. Raises RecipeError for what belongs to the sweep."""
    section, key = place(name)
    if section == "training" and key in ("seed", "output_dir"):
        raise RecipeError(f"training.{key} is the sweep's own: say it beside the variants, as seeds and output_dir.")
    sections[section] = dict(sections.get(section) or {})
    put(sections[section], key, value)


def made(name: str, base: dict[str, Any], folder: Path, changes: Any) -> Variant:
    """A variant by what it changes: whole sections, or single fields by their names."""
    try:
        if not isinstance(changes, Mapping | None):
            raise RecipeError(f"a variant is a table of what differs, not {changes!r}.")
        sections = deepcopy(base)
        for key, value in (changes or {}).items():
            whole = key in {*SECTIONS, "model", "training"} and isinstance(value, Mapping)
            for one, entry in value.items() if whole else [(key, value)]:
                change(sections, f"{key}.{one}" if whole else str(one), entry)
        return Variant(name, as_recipe(sections, folder))
    except RecipeError as error:
        return Variant(name, error=sentence(error))


def share_tokenizer(base: Recipe, output: Path) -> Path:
    """The folder of the tokenizer of all variants: losses of different tokens could not be compared. Raises RecipeError
    where the sweep in `output` has another."""
    from .text import divide
    from .tokens import take_tokenizer, train_tokenizer

    output.mkdir(parents=True, exist_ok=True)
    kept, wanted = output / TOKENIZER, base.as_dict()["tokenizer"]
    held = read_yaml(output / BASE)["tokenizer"] if (output / BASE).is_file() else wanted
    if other := [name for name in wanted if wanted[name] != held.get(name)]:
        raise RecipeError(
            f"{output} holds a sweep with tokenizer.{other[0]}={held.get(other[0])!r}, not {wanted[other[0]]!r}: "
            "choose another output_dir."
        )
    texts, _ = divide(base.data, base.folder)
    tokenizer = take_tokenizer(base.tokenizer, base.folder, kept) or train_tokenizer(base.tokenizer, texts())
    tokenizer.save_pretrained(kept)
    write_recipe(base, output / BASE)
    return kept


# -- one size, or one cost -------------------------------------------------------------------------------------------


def match(variants: list[Variant], said: SweepRecipe) -> list[Variant]:
    """The variants with their costs, alike in what `said.match` names. Raises RecipeError for a reference that cannot
    be built."""
    first = next(variant for variant in variants if variant.name == said.reference)
    for variant in [first, *(other for other in variants if other is not first)]:
        try:
            if variant.error is None:
                size(variant, first, said)
        except Exception as error:
            variant.error = sentence(error)
        if first.error is not None and said.match != "none":
            raise RecipeError(f"{first.name}, which the others are matched to, cannot be built: {first.error}")
    return variants


def size(variant: Variant, reference: Variant, said: SweepRecipe) -> None:
    """Notes what a variant costs, after its width or its steps have been chosen to match."""
    tokenizer = tokenizer_of(variant.recipe)
    if variant is not reference and said.match in ("parameters", "active_parameters"):
        fit_width(variant, tokenizer, reference.cost[said.match], said)
    variant.cost = cost_of(variant.recipe, tokenizer)
    if variant is not reference and said.match == "flops":
        steps = reference.cost["flops"] / variant.cost["flops"] * variant.cost["steps"]
        variant.recipe.training["max_steps"] = max(1, round(steps))
        variant.cost = cost_of(variant.recipe, tokenizer)


def tokenizer_of(recipe: Recipe) -> "PreTrainedTokenizerBase":
    from .tokens import take_tokenizer

    tokenizer = take_tokenizer(recipe.tokenizer, recipe.folder, Path("no such folder"))
    if tokenizer is None:
        raise RecipeError("tokenizer: a variant takes a tokenizer by its path; that of the base is for all of them.")
    return tokenizer


def cost_of(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Sizes, FLOPs and cache of a recipe's model, and its steps."""
    from description_zoo.measure import empty_model, measure

    from .cost import flops_per_token
    from .run import make_config, training_arguments

    config, arguments = make_config(recipe, tokenizer), training_arguments(recipe, False)
    if arguments.max_steps <= 0:
        raise RecipeError("training.max_steps: variants are compared after a number of steps; give one.")
    model, length = empty_model(config), recipe.data.length
    found = measure(config, model)
    rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    per_token, tokens = flops_per_token(model, length), arguments.max_steps * rows * length
    kept = ("parameters", "active_parameters", "cache_bytes_per_token", "state_bytes")
    cost = {name: found[name] for name in kept}
    return cost | {
        "flops_per_token": per_token, "flops": per_token * tokens, "tokens": tokens, "steps": arguments.max_steps,
    }  # fmt: skip


def fit_width(variant: Variant, tokenizer: "PreTrainedTokenizerBase", wanted: int, said: SweepRecipe) -> None:
    """Sets `match_field` to the multiple of `match_step` with which the variant comes nearest to `wanted` parameters,
    by bisection: more of a width are never fewer parameters. Raises RecipeError where that is not near enough."""
    from description_zoo.measure import measure

    from .run import make_config

    def found(count: int) -> int:
        recipe = deepcopy(variant.recipe)
        put(recipe.model, said.match_field, count * said.match_step)
        return measure(make_config(recipe, tokenizer))[said.match]

    low, high = 1, 2
    while found(high) < wanted and high < 2**20 // said.match_step:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if found(middle) < wanted else (low, middle)
    best = min((low, high), key=lambda count: abs(found(count) - wanted))
    if abs(found(best) - wanted) > said.tolerance * wanted:
        raise RecipeError(
            f"no model.{said.match_field} brings it within {said.tolerance:.1%} of {wanted:,} {said.match}: with "
            f"{best * said.match_step} it has {found(best):,}. Change its flags, match_field, match_step or tolerance."
        )
    put(variant.recipe.model, said.match_field, best * said.match_step)
