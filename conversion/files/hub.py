"""A repository of the Hub as a local folder: of its files those that are asked for, in the revision that is named."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import ConversionError

_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")
_FAILURES = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError)


class HubId(NamedTuple):
    """`owner/name` or `owner/name@revision`; a revision is a branch, a tag or a commit. None: the main branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


def hub_id(name: str) -> HubId | None:
    """The repository that a name is the id of; None where it has not the form of one, or is that of a JSON file."""
    found = _ID.fullmatch(name)
    return HubId(found["repository"], found["revision"]) if found and not name.endswith(".json") else None


def fetch_repository(wanted: HubId, patterns: Sequence[str]) -> Path:
    """The local folder with the files of a repository that match; raises ConversionError where the Hub does not give
    them. What the cache has of that revision is not fetched again."""
    try:
        folder = Path(snapshot_download(wanted.repository, revision=wanted.revision, allow_patterns=list(patterns)))
    except _FAILURES as error:
        raise ConversionError(_why(wanted, error)) from error
    if not folder.is_dir():
        raise ConversionError(f"{wanted} has no config.json or other file of a model: it is not a model folder.")
    return folder


def fetch_file(wanted: HubId, name: str) -> Path:
    """The local copy of one file; raises ConversionError where the Hub does not give it."""
    try:
        return Path(hf_hub_download(wanted.repository, name, revision=wanted.revision))
    except _FAILURES as error:
        raise ConversionError(_why(wanted, error)) from error


def _why(wanted: HubId, error: Exception) -> str:
    """An error of the Hub's library as a sentence for the reader, who named the repository."""
    start = f"{wanted} is no local folder, and the Hub "
    if isinstance(error, GatedRepoError):
        return start + "gives it only to those whom its owner has let in: ask on its page, then run `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return (
            start + "has no such repository that you may see: check the name, or run `hf auth login` if it is private."
        )
    if isinstance(error, RevisionNotFoundError):
        return start + f"has no revision {wanted.revision!r} of {wanted.repository}: name a branch, a tag or a commit."
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return start + "cannot be asked while the cache has not all of it: go online, or unset HF_HUB_OFFLINE."
    if isinstance(error, EntryNotFoundError):
        return f"{wanted} has no config.json: it is not a model folder."
    return start + f"did not give it: {' '.join(str(error).split())[:200]}."
