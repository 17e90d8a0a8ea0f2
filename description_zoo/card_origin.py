"""Where a model came from, as its card says it: metadata of the original's card, licence files, what was set aside."""

import json
import re
from pathlib import Path
from typing import Any, Protocol

from configuration_zoo import ZooConfig
from configuration_zoo.version import TRANSFORMERS
from modeling_zoo.platform_saving import SOURCE_FOLDER

from .foreign_text import code_span, is_slug, printable

CARD = "README.md"
# The head of a card is a few lines; an alias bomb is not.
LONGEST_HEAD = 100_000


class Origin(Protocol):
    """What a card says of the checkpoint a folder was converted from."""

    model_type: str | None
    # Names of tensors that are kept for converting back alone.
    kept: list[str]
    # The dtype the tensors were cast to, if any.
    cast: str | None
    # The repository of the Hub and the commit, where it came from there.
    repository: str | None
    revision: str | None
    # The format of its weights, where they were packed.
    stored_as: str | None


def repository_of(folder: Path) -> dict[str, str]:
    """The repository and the commit of a folder in a Hub cache; {} for any other folder."""
    snapshot = folder.resolve()
    kind, _, name = snapshot.parent.parent.name.partition("--")
    if snapshot.parent.name != "snapshots" or kind != "models":
        return {}
    return {"repository": name.replace("--", "/", 1), "revision": snapshot.name}


def is_list_of_slugs(value: Any) -> bool:
    """A name, or a list of at most a hundred."""
    values = value if isinstance(value, list) else [value]
    return 0 < len(values) <= 100 and all(map(is_slug, values))


def is_place(value: Any) -> bool:
    """The name of a file, or an address of the web."""
    return is_slug(str(value).removeprefix("https://"))


def is_plain_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 10_000 and printable(value) == value


# Keys of a card's front matter that stay true of the same weights in another layout, and what each may be.
KEPT = {
    "license": is_slug,
    "license_name": is_slug,
    "license_link": is_place,
    "language": is_list_of_slugs,
    "base_model": is_list_of_slugs,
    "base_model_relation": is_slug,
    "datasets": is_list_of_slugs,
    "extra_gated_prompt": is_plain_text,
}


def carried_over(folder: Path | None) -> dict[str, Any]:
    """The front matter that passes on from the original's card, kept in `source/`, or from the folder's own."""
    cards = [folder / SOURCE_FOLDER / CARD, folder / CARD] if folder is not None else []
    for card in cards:
        if card.is_file():
            found = read_front_matter(card.read_text(encoding="utf-8", errors="replace"))
            return {key: found[key] for key, fits in KEPT.items() if found.get(key) and fits(found[key])}
    return {}


def descended(folder: Path | None, carried: dict[str, Any]) -> dict[str, Any]:
    """`carried` with the base of a model that was trained from a folder: its repository, else what that names."""
    repository = repository_of(folder).get("repository") if folder is not None else None
    if folder is not None and not repository:
        repository = noted_repository(folder)
    base = repository or carried.get("base_model")
    return carried | ({"base_model": base, "base_model_relation": "finetune"} if base else {})


def noted_repository(folder: Path) -> str | None:
    """The repository from which a folder says that it was converted."""
    path = folder / SOURCE_FOLDER / "manifest.json"
    try:
        noted = json.loads(path.read_text(encoding="utf-8")).get("repository") if path.is_file() else None
    except (ValueError, AttributeError):
        return None
    return noted if is_slug(noted) else None


def converted_from(origin: Origin, carried: dict[str, Any]) -> dict[str, Any]:
    """`carried` with the base of a conversion: the repository whose weights these are. The Hub knows four relations, of
    which "quantized" is the one for the same weights stored otherwise."""
    if not is_slug(origin.repository):
        return carried
    return carried | {"base_model": origin.repository, "base_model_relation": "quantized"}


def origin_of(config: ZooConfig) -> Path | None:
    """The folder a model was loaded from, or what the cache holds of its repository; the Hub is not asked."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    name = str(getattr(config, "_name_or_path", "") or "")
    if not name or Path(name).is_dir():
        return Path(name) if name else None
    try:
        card = try_to_load_from_cache(name, CARD)
    except HFValidationError:
        return None
    return Path(card).parent if isinstance(card, str) else None


def read_front_matter(text: str) -> dict[str, Any]:
    """The YAML between the first two lines of `---`; {} where there is none, or none that can be read."""
    import yaml

    found = re.match(r"\s*---\s*\n(.*?)\n---\s*(?:\n|$)", text[:LONGEST_HEAD], flags=re.DOTALL)
    try:
        content = yaml.safe_load(found[1]) if found else None
    # Nested too deeply, or a date that no calendar has.
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def front_matter(carried: dict[str, Any], pipeline: str = "text-generation") -> str:
    """The head of a card: what the Hub sorts models by, and what was carried over."""
    from huggingface_hub import ModelCardData

    content = {"library_name": "transformers", "pipeline_tag": pipeline, "tags": ["zoo", "custom_code"]}
    return f"---\n{ModelCardData(**content | carried).to_yaml()}\n---\n"


def needs_note() -> str:
    """The versions that load the folder."""
    return f"It loads with transformers ≥ {TRANSFORMERS} and `trust_remote_code=True`; zoo need not be installed."


def source_note(folder: Path, origin: Origin) -> str:
    """Licence, the original's card, and the tensors that are kept for converting back."""
    licences = sorted(path.name for path in folder.iterdir() if path.name.startswith(("LICENSE", "LICENCE", "NOTICE")))
    named = carried_over(folder).get("license")
    note = f"## Source\n\nConverted from a {code_span(origin.model_type)} checkpoint"
    if is_slug(origin.repository):
        note += f", {code_span(origin.repository)} at commit {code_span(origin.revision)}"
    if origin.stored_as:
        note += f", whose weights were stored as {code_span(origin.stored_as)}"
    note += "; its licence applies to these weights"
    note += f" ({code_span(named)}" if named else " (the source's card names none"
    note += f"; {', '.join(map(code_span, licences))})." if licences else "; it had no licence file)."
    if (folder / SOURCE_FOLDER / CARD).is_file():
        note += f" Its own card is `{SOURCE_FOLDER}/{CARD}`."
    if origin.kept:
        note += (
            f" {len(origin.kept)} tensors that zoo does not use are kept in `{SOURCE_FOLDER}/` for converting back: "
            + ", ".join(map(code_span, origin.kept[:5]))
            + (" ..." if len(origin.kept) > 5 else ".")
        )
    return note + "\n"
