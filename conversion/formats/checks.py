"""What formats ask of their scheme and of the stored parts of a weight; what is not so is named and refused."""

from typing import Any

from torch import Tensor

from ..errors import ConversionError

_WORDS = {bool: "true or false", int: "a whole number", str: "a word", list: "a list", dict: "an object"}


def setting(scheme: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """What a scheme, or a part of it, says under a key, `default` where it says nothing or null. Raises ConversionError
    for anything of another kind."""
    value = scheme.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConversionError(f"quantization_config has {key}={value!r}, which must be {_WORDS[kind]}.")
    return value


def size_of_groups(scheme: dict[str, Any], key: str, whole: int) -> int:
    """How many numbers share a scale: what a scheme says, `whole` where that is nothing or -1. Raises ConversionError
    for a size that is none."""
    size = setting(scheme, key, int, -1)
    if size == 0 or size < -1:
        raise ConversionError(f"quantization_config has {key}={size}: a size of groups is 1 or more, or -1 for all.")
    return whole if size == -1 else size


def need_shape(part: str, headers: dict[str, Tensor], weight: str, *shapes: tuple[int, ...]) -> None:
    """Raises ConversionError where a part of a weight is not there, or has none of these shapes."""
    if part not in headers:
        raise ConversionError(f"{weight!r} is packed and has no {part!r}: the checkpoint is incomplete.")
    if tuple(headers[part].shape) not in map(tuple, shapes):
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise ConversionError(f"{part!r} is {list(headers[part].shape)}, which {weight!r} needs as {wanted}.")
