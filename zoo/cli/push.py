"""zoo push FOLDER owner/name: a model folder, a tokenizer or an adapter onto the Hub, all of it or nothing."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from conversion.command import say
from conversion.files.interrupts import cleaned_up

from .errors import UserError
from .push_folder import CARD, CONFIG, complaints, files_to_push, read_object, wants_card


def push(
    folder: Annotated[Path, typer.Argument(help="Folder with a model, an adapter or a tokenizer.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository; created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create it private.")] = False,
    revision: Annotated[str, typer.Option(help="Branch to commit to; created if it does not exist.")] = "main",
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload with zoo push",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be sent.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the list.")] = False,
) -> None:
    """Push a folder to the Hub in one commit: weights, code, tokenizer and card; a card is written if it has none."""
    from huggingface_hub.utils import disable_progress_bars, validate_repo_id

    from .hub_errors import in_one_sentence

    if repository.count("/") != 1:
        raise UserError(f"{repository!r} is no repository of the Hub: write owner/name.")
    validate_repo_id(repository)
    # First, since what leads out of the folder is not even read.
    files, left_out = files_to_push(folder)
    if problem := complaints(folder):
        raise UserError(problem)
    check_weights(folder)
    with cleaned_up(), tempfile.TemporaryDirectory() as written:
        if wants_card(folder):
            files |= write_card(folder, Path(written))
        report = {"repository": repository, "revision": revision, "private": private, "dry_run": dry_run}
        report["files"] = [{"path": name, "bytes": path.stat().st_size} for name, path in sorted(files.items())]
        report["bytes"] = sum(file["bytes"] for file in report["files"])
        report["generated"] = sorted(name for name, path in files.items() if path.parent == Path(written))
        report["left_out"] = left_out
        if not dry_run:
            disable_progress_bars() if as_json else None
            with in_one_sentence(repository):
                report |= upload(files, repository, private, revision, message)
    typer.echo(json.dumps(report)) if as_json else show(report)


def check_weights(folder: Path) -> None:
    """Raises ConversionError for a zoo folder whose weights are not those of its model."""
    from conversion.command import quiet
    from conversion.engine.loading import config_of_folder

    from .loading import MODEL_TYPE, read_config

    config = read_object(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if (config or {}).get("model_type") == MODEL_TYPE:
        quiet()
        config_of_folder(folder, read_config(folder))


def write_card(folder: Path, target: Path) -> dict[str, Path]:
    """The card of a folder that has none or an empty one, and its picture, written into `target`; -> {name in the
    repository: path}."""
    from conversion.command import quiet
    from description_zoo.card import write_plain_card
    from description_zoo.card_adapter import write_adapter_card

    from ..inspection import config_of

    quiet()
    if (folder / CONFIG).is_file():
        write_plain_card(target, config_of(str(folder)))
    else:
        write_adapter_card(folder, target)
    return {path.name: path for path in target.iterdir() if path.name == CARD or not (folder / path.name).exists()}


def upload(files: dict[str, Path], repository: str, private: bool, revision: str, message: str) -> dict:
    """One commit with every file; -> its hash and address. A file the repository has already is not sent again. Raises
    UserError for a public repository that should be private."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="zoo")
    api.create_repo(repository, private=True if private else None, exist_ok=True)
    if private and not api.model_info(repository).private:
        raise UserError(f"{repository} exists and is public: change that on the Hub first, or push without --private.")
    if revision != "main":
        api.create_branch(repository, branch=revision, exist_ok=True)
    additions = [CommitOperationAdd(name, path) for name, path in sorted(files.items())]
    done = api.create_commit(repository, additions, commit_message=message, revision=revision)
    return {"commit": done.oid, "url": f"{api.endpoint}/{repository}"}


def show(report: dict) -> None:
    """The list as a table, the total, and how to load what is there now."""
    from .tables import print_table, short_bytes

    rows = [(file["path"], short_bytes(file["bytes"])) for file in report["files"]]
    print_table(("file", "size"), rows, numeric=(1,))
    count = f"{len(rows)} files, {short_bytes(report['bytes'])}"
    place = f"{report['repository']} at {report['revision']}"
    for name in report["generated"]:
        say(f"{name} was not in the folder and is written for the push")
    for name in report["left_out"]:
        say(f"{name} is a pickle, which can run code when it is opened, and stays here")
    if report["dry_run"]:
        say(f"would go to {place}: {count}; nothing was sent")
        return
    say(f"{place}: {count} -> {report['url']}")
    say(f"commit {report['commit']} (revision= pins it)")
