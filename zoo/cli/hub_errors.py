"""What the Hub or the way to it refuses, as one sentence that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from conversion.errors import sentence

from .errors import UserError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

LOG_IN = "set HF_TOKEN to a token with write access, or run `hf auth login`"
AGAIN = "run the same command again (files that have arrived are not sent twice)"


@contextmanager
def in_one_sentence(repository: str) -> Iterator[None]:
    """Turns what huggingface_hub's client raises inside the block into UserError; other errors pass."""
    try:
        yield
    except Exception as error:
        explained = explain(repository, error)
        if explained is None:
            raise
        raise UserError(explained) from error


def explain(repository: str, error: BaseException | None) -> str | None:
    """The sentence for an error of the client, None for an error of another kind."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked: unset it to push."
    if isinstance(error, HfHubHTTPError):
        return of_status(repository, error)
    # Its HTTP library was httpx before it was httpx2.
    if isinstance(error, Exception) and type(error).__module__.startswith("httpx"):
        return f"the connection to the Hub broke ({sentence(error)}): {AGAIN}."
    # An upload in a thread wraps what went wrong.
    return explain(repository, error.__cause__) if isinstance(error, RuntimeError) else None


def of_status(repository: str, error: "HfHubHTTPError") -> str:
    """A sentence for an answer that was no success."""
    status = getattr(error.response, "status_code", 0)
    if status == 401:
        return f"the Hub does not know who is pushing to {repository}: {LOG_IN}."
    if status == 403:
        return f"this token may not write to {repository}: {LOG_IN}."
    if status == 404:
        return f"the Hub has no {repository} that this token may see: check the name, or {LOG_IN}."
    if status >= 500:
        return f"the Hub failed with status {status} on {repository}: {AGAIN}."
    words = getattr(error, "server_message", None) or sentence(error)
    return f"the Hub refused the push to {repository} with status {status}: {words}"
