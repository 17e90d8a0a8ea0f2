"""Text from files and data sets, document by document."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recipe import RecipeError

if TYPE_CHECKING:
    from .recipe import DataRecipe

ENDINGS = (".txt", ".md", ".jsonl", ".parquet")


def find_files(patterns: Iterable[str], folder: Path) -> list[Path]:
    """The files that `patterns` match, relative ones in `folder`, in the order of their names. Raises RecipeError for a
    pattern that matches none and for a kind of file that is not read."""
    found: list[Path] = []
    for pattern in patterns:
        base = Path(pattern).expanduser()
        at = base if base.is_absolute() else folder / base
        matched = sorted(Path(at.anchor or ".").glob(str(at.relative_to(at.anchor) if at.anchor else at)))
        if not matched:
            raise RecipeError(f"data.files: {pattern} matches no file in {folder.resolve()}.")
        found += matched
    if strange := [path for path in found if path.suffix not in ENDINGS]:
        raise RecipeError(f"data.files: {strange[0]} is none of {', '.join(ENDINGS)}.")
    return found


def read_documents(path: Path, data: "DataRecipe") -> Iterator[str]:
    """The documents of a file. Raises RecipeError for a column or a line that is not there."""
    if path.suffix == ".parquet":
        yield from read_parquet(path, data.text_column)
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield text_of(parse_line(line, f"{path}, line {number}"), data.text_column, f"{path}, line {number}")
    else:
        text = path.read_text(encoding="utf-8")
        yield from (part for part in (text.split(data.separator) if data.separator else [text]) if part.strip())


def parse_line(line: str, where: str) -> Any:
    """A line of JSON. Raises RecipeError for one that is none."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{where} is not JSON: {error}.") from None


def text_of(row: Any, column: str, where: str) -> str:
    """The text in a row. Raises RecipeError where there is none."""
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        has = f"has {sorted(row)}" if isinstance(row, dict) else f"is {type(row).__name__}"
        raise RecipeError(f"{where}: no text in column {column!r} (it {has}); data.text_column names the column.")
    return row[column]


def read_parquet(path: Path, column: str) -> Iterator[str]:
    """A column, some thousand rows at a time. Raises RecipeError where it is missing."""
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    if column not in file.schema_arrow.names:
        raise RecipeError(f"{path}: no column {column!r} (it has {file.schema_arrow.names}); see data.text_column.")
    for batch in file.iter_batches(columns=[column]):
        yield from (text for text in batch.column(0).to_pylist() if text)


def stream_documents(data: "DataRecipe") -> Iterator[str]:
    """The documents of a data set, which datasets reads. Raises RecipeError without that library."""
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise RecipeError("data.dataset needs the library datasets: pip install datasets.") from None
    rows = load_dataset(data.dataset, data.dataset_config, split=data.split, streaming=data.streaming)
    for row in rows:
        yield text_of(row, data.text_column, data.dataset)


def documents(data: "DataRecipe", folder: Path) -> Iterator[str]:
    """Every document of a recipe, in order. Raises RecipeError as its readers do."""
    if data.dataset:
        yield from stream_documents(data)
    for path in find_files(data.files, folder):
        yield from read_documents(path, data)


def divide(data: "DataRecipe", folder: Path) -> tuple[Callable[[], Iterable[str]], list[str]]:
    """(what gives the documents to train on, as often as it is called; documents that are never trained on).

    Of a data set the first ones are held out, of files each n-th, of a single document its end. Raises RecipeError
    where nothing is left to train on.
    """
    if data.held_out_files:
        held = [text for path in find_files(data.held_out_files, folder) for text in read_documents(path, data)]
        texts = None if data.dataset else list(documents(data, folder))
        return (lambda: documents(data, folder)) if texts is None else (lambda: texts), held
    if data.dataset:
        held = list(first_documents(documents(data, folder), data))
        return lambda: islice(documents(data, folder), len(held), None), held
    kept, held = divide_texts(list(documents(data, folder)), data.held_out)
    if not any(text.strip() for text in kept) or not held:
        raise RecipeError("data: there is no text to train on, or none to hold out.")
    return lambda: kept, held


def divide_texts(texts: list[str], share: float) -> tuple[list[str], list[str]]:
    """(kept, held out): each n-th, the last of few, the end of one."""
    if len(texts) == 1:
        cut = int(len(texts[0]) * (1 - share))
        return [texts[0][:cut]], [texts[0][cut:]]
    every = max(2, round(1 / share))
    if len(texts) < every:
        return texts[:-1], texts[-1:]
    return [text for index, text in enumerate(texts) if index % every != every - 1], texts[every - 1 :: every]


def first_documents(stream: Iterator[str], data: "DataRecipe") -> Iterator[str]:
    """As many documents as `held_out_rows` rows hold at four bytes a token."""
    wanted = data.held_out_rows * data.length * 4
    for text in stream:
        yield text
        wanted -= len(text.encode())
        if wanted <= 0:
            return
