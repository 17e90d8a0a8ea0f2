"""Rotation in the spelling of transformers 4 beside `rope_parameters`: merged into them, or refused.

transformers lets `rope_scaling` take the place of `rope_parameters` whole, so that a table without a theta turns with
the default one, and drops a top-level `rope_theta`. What the recipes mean is: the same rotation, scaled.
"""

from collections.abc import Iterable
from typing import Any

LEGACY_ROPE_KEYS = ("rope_theta", "rope_scaling", "partial_rotary_factor", "rope_type")


def merge_rope_keys(given: dict[str, Any], layer_types: list[str] | None) -> dict[str, Any]:
    """`given` with its old keys in `rope_parameters`, where it has those; raises ValueError where the two disagree.

    Tables by layer type take an old number that at least one of them has, and a `rope_scaling` by layer type.
    """
    old = {key: given[key] for key in LEGACY_ROPE_KEYS if given.get(key) not in (None, {})}
    if not isinstance(given.get("rope_parameters"), dict | None):
        return given
    if not given.get("rope_parameters"):
        if "rope_type" in old:
            raise ValueError(f"rope_type={old['rope_type']!r} stands in rope_parameters, with what belongs to it.")
        return given
    parameters, layer_types = given["rope_parameters"], layer_types or ()
    nested = {name: table for name, table in parameters.items() if name in layer_types}
    tables = {name: dict(table) for name, table in (nested or {None: parameters}).items() if table is not None}
    scaling = old.pop("rope_scaling", {})
    if not isinstance(scaling, dict):
        raise ValueError(f"rope_scaling={scaling!r} must be a dict; rope_parameters says the same and more.")
    for name, table in _by_table(scaling, tables, layer_types).items():
        tables[name] = _scaled(tables[name], table)
    for key, value in old.items():
        _fill_tables(tables, key, value)
    rest = {key: value for key, value in given.items() if key not in LEGACY_ROPE_KEYS}
    return rest | {"rope_parameters": parameters | tables if nested else tables[None]}


def keep_theta(held: dict[str, Any] | None, given: dict[str, Any] | None) -> None:
    """Raises ValueError for tables given beside a file's that leave out the theta the file has."""
    if not (isinstance(held, dict) and isinstance(given, dict)):
        return
    if "rope_theta" in held and given and not any(isinstance(table, dict) for table in given.values()):
        if "rope_theta" not in given:
            raise ValueError(
                f"rope_parameters={given!r} leaves out rope_theta, which is {held['rope_theta']!r}: give it."
            )
    for name in held.keys() & given.keys():
        keep_theta(held[name], given[name])


def _by_table(
    scaling: dict[str, Any], tables: dict[str | None, dict], layer_types: Iterable[str]
) -> dict[str | None, dict]:
    """`rope_scaling` by the table each part of it belongs to."""
    parts = {name: part for name, part in scaling.items() if name in layer_types and part}
    parts = parts or ({None: scaling} if scaling else {})
    if unknown := [name for name in parts if name not in tables]:
        what = "of no layer type" if unknown == [None] else f"of the layer type {unknown[0]!r}"
        named = "one table for all" if None in tables else f"tables for {sorted(tables)}"
        raise ValueError(f"rope_scaling={scaling!r} is {what}, rope_parameters has {named}: write it into those.")
    return parts


def _scaled(table: dict[str, Any], scaling: dict[str, Any]) -> dict[str, Any]:
    """A table of rotation and the scaling that stands beside it."""
    scaling = dict(scaling)
    kind = scaling.pop("type", None)
    if scaling.setdefault("rope_type", kind) is None:
        raise ValueError(f"rope_scaling={scaling!r} has no rope_type.")
    unscaled = table.get("rope_type", table.get("type", "default")) == "default"
    for key in scaling:
        here = table.get(key, scaling[key])
        if here != scaling[key] and not (unscaled and key == "rope_type"):
            raise _disagreement(f"rope_scaling: {key}", scaling[key], key, here)
    return {key: value for key, value in table.items() if key != "type"} | scaling


def _fill_tables(tables: dict[str | None, dict], key: str, value: Any) -> None:
    """A top-level number goes where no table has one, and agrees with one that does."""
    held = [table[key] for table in tables.values() if key in table]
    if held and value not in held:
        raise _disagreement(key, value, key, held[0] if len(held) == 1 else held)
    for table in tables.values():
        table.setdefault(key, value)


def _disagreement(old: str, value: Any, key: str, here: Any) -> ValueError:
    return ValueError(
        f"{old}={value!r} and rope_parameters: {key}={here!r} disagree: take one of them out of the configuration."
    )
