"""Names that a training wrapper left in a checkpoint: torch.compile's, DDP's, FSDP's, PEFT's after merging."""

import re
from collections.abc import Iterable

from ..errors import ConversionError
from .checkpoint import StoredTensors

_ANYWHERE = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTSIDE = ("module.", "base_model.model.")


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """{name in the files: name without wrappers}."""
    plain = {name: _ANYWHERE.sub("", name) for name in names}
    while outer := [prefix for prefix in _OUTSIDE if plain and all(name.startswith(prefix) for name in plain.values())]:
        plain = {name: without.removeprefix(outer[0]) for name, without in plain.items()}
    return plain


def take_off(checkpoint: StoredTensors) -> None:
    """Gives the tensors of a checkpoint their names without wrappers; raises ConversionError where two become one."""
    plain = plain_names(checkpoint.headers)
    seen: dict[str, str] = {}
    for name, without in plain.items():
        if without in seen:
            raise ConversionError(f"{seen[without]!r} and {name!r} are both {without!r} of the model: remove one.")
        seen[without] = name
    if any(name != without for name, without in plain.items()):
        checkpoint.rename(plain)
