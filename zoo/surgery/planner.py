"""From the fields that are wanted to the operations that lead there, in order."""

from difflib import get_close_matches
from typing import Any

from configuration_zoo import ZooConfig
from configuration_zoo.field_kinds import nearest
from configuration_zoo.field_settings import described

from .operation import Operation, Request, SurgeryError, has_own
from .registry import OPERATIONS


def refuse_unknown(fields: dict[str, Any]) -> None:
    """Raises SurgeryError for a name that is no field of a config."""
    known = {*described(ZooConfig), "tie_word_embeddings"}
    for name in fields:
        if name not in known:
            raise SurgeryError(f"{name} is not a field of a config.{nearest(name, known)}")


def applied_operation(name: str) -> Operation:
    """The operation that changes no field and is called so. Raises SurgeryError for any other name."""
    known = {operation.applied: operation for operation in OPERATIONS if operation.applied}
    if name not in known:
        raise SurgeryError(f"apply={name!r} is none of {sorted(known)}.")
    return known[name]


def chosen_layers(config: ZooConfig, operation: Operation, fields: dict[str, Any], wanted: Any) -> list[int]:
    """`wanted`: None or "all", or numbers; raises SurgeryError for a layer that the operation cannot change."""
    possible = operation.layers(config, fields)
    if not possible:
        raise SurgeryError(f"{operation.name}: no layer of this model can be changed so.")
    if wanted in (None, "all"):
        return possible
    if beyond := sorted(set(wanted) - set(possible)):
        raise SurgeryError(f"{operation.name}: layer {beyond[0]} cannot be changed so; {ranges(possible)} can.")
    return sorted(set(wanted))


def parse_layers(text: str | list | None) -> Any:
    """ "1,3", "0-4", "all", "auto:2", or a list of numbers and ranges → numbers, or the word. Raises SurgeryError for
    anything else."""
    if text is None or text == "all" or (isinstance(text, str) and text.startswith("auto")):
        return text
    parts = text.split(",") if isinstance(text, str) else text if isinstance(text, list) else [text]
    numbers = []
    for part in parts:
        first, _, last = str(part).strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise SurgeryError(f"layers={text!r}: write numbers and ranges such as 0,2-4, all, or auto:2.")
        numbers += range(int(first), int(last or first) + 1)
    if not numbers:
        raise SurgeryError(f"layers={text!r} names no layer: write numbers and ranges such as 0,2-4, all, or auto:2.")
    return numbers


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] → "layers 0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"layer{'s' if len(numbers) != 1 else ''} {text}"


def next_operation(
    config: ZooConfig, fields: dict[str, Any], method: str | None, invents: bool = True
) -> tuple[Operation, dict[str, Any]]:
    """The first operation of the registry that these fields ask for, and which of them are its own; without `invents`
    one that adds no parameters. Raises SurgeryError for fields that no operation reaches."""
    for operation in OPERATIONS:
        if operation.invents and not invents:
            continue
        if method is not None and operation.methods and method not in operation.methods:
            continue
        if any(name in fields for name in operation.leads) and operation.matches(config, fields):
            own = {name: value for name, value in fields.items() if name in (*operation.leads, *operation.takes)}
            return operation, own
    name = next(iter(fields))
    ways = [operation for operation in OPERATIONS if name in operation.leads]
    if method is not None and ways:
        methods = sorted({one for operation in ways for one in operation.methods})
        raise SurgeryError(f"method {method!r} is none of {name}: there {'are' if methods else 'is'} {methods}.")
    if ways:
        raise SurgeryError(
            f"{name}={fields[name]!r} cannot be reached from {getattr(config, name)!r}: `zoo surgery SOURCE` lists "
            "what can."
        )
    reachable = sorted({lead for operation in OPERATIONS for lead in operation.leads})
    close = get_close_matches(name, reachable, n=1, cutoff=0.0)
    raise SurgeryError(f"no operation changes {name}; the nearest field that one changes is {close[0]}.")


def differing(config: ZooConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """What is wanted and not so already."""
    return {
        name: value for name, value in fields.items() if has_own(config, name) or getattr(config, name, None) != value
    }


def requested(
    config: ZooConfig, operation: Operation, own: dict[str, Any], layers: Any, method: str | None, seed: int
) -> Request:
    """The request, its layers found and its values checked."""
    possible = operation.layers(config, own)
    chosen = chosen_layers(config, operation, own, layers)
    method = method if method in operation.methods else None
    request = Request(own, chosen, method or (operation.methods or (None,))[0], set(chosen) == set(possible), seed)
    operation.check(config, request)
    return request
