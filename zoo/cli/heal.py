"""zoo heal TARGET: a changed model learns again what its teacher does."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from conversion.command import quiet

from .surgery import show_report

TARGET_HELP = "Folder that `zoo surgery` wrote; stays loadable, and holds the best weights found so far."
TEACHER_HELP = "Folder or Hub id to learn from. Default: what TARGET was made from."
TEXT_HELP = "Text (.txt, .jsonl) to learn from, the model's own kind serves best; its last rows are never learnt from."
TRAIN_HELP = "What learns: all, changed (modules alone), or lora. Default: all."
RATE_HELP = "Largest learning rate. Default: 1e-3 for 64 channels, less for a wider model."
LAYERWISE_HELP = "Steps in which changed modules fit the teacher's first. Default: about half of --steps, once."
INDEXER_HELP = "Steps in which new indexers follow dense attention first. Default: about half of --steps, once."
STREAMED_HELP = "One layer in memory, for steps on outputs alone (--steps 0). Default: where both models do not fit."


def heal(
    target: Annotated[Path, typer.Argument(help=TARGET_HELP)],
    teacher: Annotated[str | None, typer.Option(help=TEACHER_HELP)] = None,
    text: Annotated[Path | None, typer.Option(metavar="TEXT", help=TEXT_HELP)] = None,
    steps: Annotated[int | None, typer.Option(help="Steps on logits. Default: 1000.")] = None,
    train: Annotated[str | None, typer.Option(help=TRAIN_HELP)] = None,
    learning_rate: Annotated[float | None, typer.Option(help=RATE_HELP)] = None,
    layerwise: Annotated[int | None, typer.Option(help=LAYERWISE_HELP)] = None,
    indexer: Annotated[int | None, typer.Option(help=INDEXER_HELP)] = None,
    evaluate: Annotated[Path | None, typer.Option(metavar="TEXT", help="Text to measure with. Default: TEXT.")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 50,
    streamed: Annotated[bool | None, typer.Option("--streamed/--whole", help=STREAMED_HELP)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the order of the text.")] = None,
    progress: Annotated[bool, typer.Option(help="Show progress bars, where there is a terminal.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
) -> None:
    """Heal a changed model: it learns from its teacher, layer by layer, then as a whole. Stopped, it goes on where it
    was."""
    from zoo.surgery import heal as heal_folder
    from zoo.surgery.healing_sharded import is_first

    quiet()
    options = {"steps": steps, "train": train, "learning_rate": learning_rate, "layerwise": layerwise}
    options |= {"indexer": indexer, "seed": seed}
    shows = progress and not as_json and sys.stderr.isatty() and is_first()
    done = heal_folder(
        target, teacher, text, evaluate=evaluate, save_every=save_every, streamed=streamed, progress=shows, **options
    )
    if is_first():
        show_report(done, as_json)
