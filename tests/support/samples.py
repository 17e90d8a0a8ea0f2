"""Large tables of cases: which run every time, and which under the mark `long` only.

The mark `sampled(step)` (conftest.py) thins out a whole table, of all its parameters together; these one of them.
"""

import pytest


def every(step, cases):
    """Each `step`-th case, from the first on, runs every time."""
    return [pytest.param(case, marks=[pytest.mark.long] if index % step else []) for index, case in enumerate(cases)]


def only(kept, cases):
    """The cases that are in `kept` run every time; each of them must be there."""
    cases = list(cases)
    assert set(kept) <= set(cases)
    return [pytest.param(case, marks=[] if case in kept else [pytest.mark.long]) for case in cases]
