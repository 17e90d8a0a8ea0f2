"""One training run, from a recipe to a model folder."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recipe import MODEL_STARTS, Recipe, RecipeError, read_recipe, write_recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from configuration_zoo import ZooConfig

# What is inside an output folder, beside the checkpoints of transformers' Trainer.
MODEL, TOKENIZER, RECIPE, LOG, PICTURE = "model", "tokenizer", "recipe.yaml", "log.json", "loss.png"
SAMPLES = "samples.jsonl"


@dataclass
class Prepared:
    """Everything of a run but its weights."""

    recipe: Recipe
    arguments: "TrainingArguments"
    tokenizer: "PreTrainedTokenizerBase"
    config: "ZooConfig"
    rows: "torch.utils.data.Dataset"
    held_out: "torch.utils.data.Dataset"
    held_out_bytes: int

    @property
    def output(self) -> Path:
        return Path(self.arguments.output_dir)


def train(
    source: "str | Path | Mapping | Recipe",
    overrides: Iterable[str] = (),
    *,
    resume: bool = False,
    dry_run: bool = False,
    shows: bool = True,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train what a recipe says; -> its cost and, unless `dry_run`, its results. The model, its tokenizer and its card
    are in `<training.output_dir>/model`.

    `shows`: the log and samples, as a bar where there is a terminal. `resume` goes on from the last checkpoint to the
    same weights, bit for bit, that a run without a break has. `say` takes sentences for a person. Raises RecipeError
    for a recipe that cannot be run, or whose output folder already holds a run that is not to be resumed.
    """
    say = say or (lambda sentence: None)
    recipe = source if isinstance(source, Recipe) else read_recipe(source, overrides)
    output = Path(recipe.training["output_dir"])
    if not resume and not dry_run and (output / RECIPE).exists():
        raise RecipeError(f"{output} holds a run: --resume goes on with it; or choose another training.output_dir.")
    prepared = prepare(recipe, shows and sys.stderr.isatty())
    cost = run_cost(prepared)
    if recipe.run.peak_flops is None or cost["peak_flops"]:
        from .cost import sentences

        for sentence in sentences(cost):
            say(sentence)
    if dry_run:
        return cost
    return cost | carry_out(prepared, cost, resume, shows, say)


def prepare(recipe: Recipe, progress: bool = True) -> Prepared:
    """Text, tokenizer, rows and config. Raises RecipeError as its parts do."""
    from .text import divide
    from .tokens import PackedRows, StreamedRows, pack_texts, take_tokenizer, train_tokenizer

    arguments = training_arguments(recipe, progress)
    texts, held = divide(recipe.data, recipe.folder)
    tokenizer = take_tokenizer(recipe.tokenizer, recipe.folder, Path(arguments.output_dir) / TOKENIZER)
    tokenizer = tokenizer or train_tokenizer(recipe.tokenizer, texts())
    held = enough(held, tokenizer, recipe.data.held_out_rows * recipe.data.length)
    held_out = PackedRows(pack_texts(held, tokenizer, recipe.data))
    streams = recipe.data.dataset is not None and recipe.data.streaming

    def rows():
        return pack_texts(texts(), tokenizer, recipe.data)

    data = StreamedRows(rows) if streams else PackedRows(rows())
    if not streams and not len(data):
        raise RecipeError(f"data: the text makes no row of data.length={recipe.data.length} tokens.")
    config = make_config(recipe, tokenizer)
    return Prepared(recipe, arguments, tokenizer, config, data, held_out, sum(len(text.encode()) for text in held))


def enough(texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase", tokens: int) -> list[str]:
    """Documents up to about `tokens` tokens, the last one cut."""
    kept = []
    for text in texts:
        count = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) + 1
        if count > tokens:
            text = text[: int(len(text) * tokens / count)]
        kept += [text] if text else []
        tokens -= count
        if tokens <= 0:
            break
    return kept


def training_arguments(recipe: Recipe, progress: bool) -> "TrainingArguments":
    """transformers' TrainingArguments. Raises RecipeError with what these refuse, or lack."""
    import torch
    from transformers import TrainingArguments

    said = dict(recipe.training)
    if said["lr_scheduler_type"] == "warmup_stable_decay" and "lr_scheduler_kwargs" not in said:
        if said["max_steps"] <= 0:
            raise RecipeError("training.max_steps: the schedule warmup_stable_decay needs a number of steps.")
        said["lr_scheduler_kwargs"] = {"num_decay_steps": int(said["max_steps"] * recipe.optimizer.decay_share)}
    if "warmup_steps" not in said:
        said["warmup_steps"] = max(1, said["max_steps"] // 50) if said["max_steps"] > 0 else 0
    said.setdefault("disable_tqdm", not progress)
    said.setdefault("remove_unused_columns", False)
    said.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    if isinstance(said.get("output_dir"), Path):
        said["output_dir"] = str(said["output_dir"])
    try:
        return TrainingArguments(**said)
    except (ImportError, TypeError, ValueError) as error:
        raise RecipeError(f"training: {' '.join(str(error).split())}") from error


def make_config(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> "ZooConfig":
    """The config of the model, with what the tokenizer and the rows settle. Raises RecipeError for fields beside a
    `path`, whose model has its own, but those that only training reads."""
    from configuration_zoo import ZooConfig
    from configuration_zoo.fields_training import TrainingFields

    said = {name: value for name, value in recipe.model.items() if name not in MODEL_STARTS}
    if path := recipe.model.get("path"):
        trained = set(TrainingFields.__dataclass_fields__) - {"initializer"}
        if fixed := sorted(name for name in said if name.partition(".")[0] not in trained):
            raise RecipeError(f"model.{fixed[0]}: the model of model.path={path!r} has its own; leave it out.")
        from ..inspection import configured, found

        config = configured(path, *found(path))
        if config.vocab_size < len(tokenizer):
            raise RecipeError(
                f"model.path: its {config.vocab_size} tokens are not those of a tokenizer of {len(tokenizer)}."
            )
        return type(config)(**{**config.to_diff_dict(), **said})
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    # The row of a padding token never learns: it must not be that of a token with a meaning.
    if tokenizer.pad_token_id not in ends.values():
        ends["pad_token_id"] = tokenizer.pad_token_id
    known = {"vocab_size": len(tokenizer), "max_position_embeddings": recipe.data.length, **ends}
    if preset := recipe.model.get("preset"):
        return ZooConfig.preset(preset, **(known | said))
    known["initializer"] = {"type": "auto"}
    if said.get("num_experts") and not {"router_aux_loss_coef", "use_score_correction_bias"} & said.keys():
        picks = said.get("scoring_func") == "sparsemixer"
        known |= {"router_aux_loss_coef": 0.01} if picks else {"use_score_correction_bias": True}
    config = ZooConfig(**(known | said))
    if recipe.optimizer.mup_base_width is not None:
        from .widths import mup_config

        config = mup_config(config, recipe.optimizer.mup_base_width)
    return config


def run_cost(prepared: Prepared) -> dict[str, Any]:
    """What `estimate` says of a run."""
    from .cost import estimate, machine_peak

    arguments, steps = prepared.arguments, prepared.arguments.max_steps
    rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    if steps <= 0:
        steps = int(arguments.num_train_epochs * max(1, len(prepared.rows) // rows))
    peak = machine_peak(prepared.recipe.run.peak_flops)
    return estimate(prepared.config, prepared.recipe, steps, rows * prepared.recipe.data.length, peak)


def make_model(prepared: Prepared) -> "PreTrainedModel":
    """The model, new by the seed or trained. In float32: an autocast computes in less."""
    from transformers import set_seed

    from modeling_zoo import ZooForCausalLM

    set_seed(prepared.arguments.seed)
    if path := prepared.recipe.model.get("path"):
        from conversion import load

        model = load(path, "float32")
        for name in prepared.recipe.model.keys() - {*MODEL_STARTS}:
            group = name.partition(".")[0]
            setattr(model.config, group, getattr(prepared.config, group))
        return model
    return ZooForCausalLM(prepared.config)


def carry_out(prepared: Prepared, cost: dict[str, Any], resume: bool, shows: bool, say: Any) -> dict[str, Any]:
    """Trains, and writes what comes out. Raises RecipeError where there is nothing to resume."""
    from transformers import PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint

    from .log_lines import LogLines
    from .samples import Samples
    from .trainer import ZooTrainer

    recipe, output = prepared.recipe, prepared.output
    checkpoint = get_last_checkpoint(str(output)) if resume and output.is_dir() else None
    if resume and checkpoint is None:
        say(f"{output} has no checkpoint: training begins at the beginning")
    output.mkdir(parents=True, exist_ok=True)
    write_recipe(recipe, output / RECIPE)
    prepared.tokenizer.save_pretrained(output / TOKENIZER)
    trainer = ZooTrainer(
        model=make_model(prepared),
        args=prepared.arguments,
        train_dataset=prepared.rows,
        eval_dataset=prepared.held_out,
        optimizer_recipe=recipe.optimizer,
        held_out_bytes=prepared.held_out_bytes,
        flops_per_token=cost["flops_per_token"],
        peak_flops=cost["peak_flops"],
    )
    samples = Samples(recipe.samples, prepared.tokenizer, output / SAMPLES, shows, trainer.pause)
    trainer.add_callback(samples)
    # Where there is a bar, it shows the log.
    trainer.remove_callback(PrinterCallback)
    if shows and prepared.arguments.disable_tqdm:
        trainer.add_callback(LogLines())
    trainer.train(resume_from_checkpoint=checkpoint)
    last = trainer.state.log_history[-2:]
    at_end = [entry for entry in last if "eval_loss" in entry and entry["step"] == trainer.state.global_step]
    metrics = at_end[0] if at_end else trainer.evaluate()
    if not trainer.is_world_process_zero():
        return {}
    return finish(trainer, metrics, prepared, say)


def finish(trainer: Any, metrics: dict[str, float], prepared: Prepared, say: Any) -> dict[str, Any]:
    """The model folder, the log and the picture; the push."""
    from description_zoo.card import write_plain_card
    from modeling_zoo.export import replace_text

    from .plots import curves_of, draw

    output, run = prepared.output, prepared.recipe.run
    trainer.model.save_pretrained(output / MODEL)
    prepared.tokenizer.save_pretrained(output / MODEL)
    write_plain_card(output / MODEL, prepared.config)
    history = trainer.state.log_history
    speeds = [entry["tokens_per_second"] for entry in history if "tokens_per_second" in entry]
    result = {
        "output": str(output),
        "model": str(output / MODEL),
        "steps_done": trainer.state.global_step,
        "loss": metrics["eval_loss"],
        "bits_per_byte": metrics.get("eval_bits_per_byte"),
        "tokens_per_second": sorted(speeds)[len(speeds) // 2] if speeds else None,
    }
    replace_text(output / LOG, json.dumps({"result": result, "history": history}, indent=1))
    if run.loss_picture and not draw({output.name: curves_of(history)}, output / PICTURE):
        say("no loss.png: the picture needs matplotlib (pip install matplotlib)")
    say(f"held out    {result['loss']:.4f} nats per token, {result['bits_per_byte']:.4f} bits per byte")
    say(f"model       {output / MODEL}")
    if run.push:
        from ..cli.push import push

        push(output / MODEL, run.push, private=run.push_private, revision="main", message="Trained with zoo")
    return result
