"""Who belongs to whom: the one-to-one pairing of largest sum."""

import torch
from torch import Tensor


def best_assignment(scores: Tensor) -> list[int]:
    """For `[n, n]` the column of each row, no column twice, with the largest sum of scores.

    Kuhn's algorithm with potentials (Kuhn 1955; Jonker & Volgenant 1987), O(n³): rows join one after the other, each by
    the cheapest path of exchanges among those that are there. Raises ValueError for what is not square or not finite.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not scores.isfinite().all():
        raise ValueError(f"scores of shape {tuple(scores.shape)} must be square and finite.")
    costs, count = -scores.double(), len(scores)
    of_rows, of_columns = torch.zeros(count + 1, dtype=torch.float64), torch.zeros(count + 1, dtype=torch.float64)
    owner = [count] * (count + 1)  # the row that has each column; the last column is where a new row begins
    for row in range(count):
        owner[count], column = row, count
        nearest = torch.full((count,), torch.inf, dtype=torch.float64)
        before, tried = [count] * count, torch.zeros(count, dtype=torch.bool)
        while owner[column] != count:
            if column < count:
                tried[column] = True
            there = owner[column]
            slack = costs[there] - of_rows[there] - of_columns[:count]
            nearer = ~tried & (slack < nearest)
            nearest[nearer] = slack[nearer]
            for one in nearer.nonzero().flatten().tolist():
                before[one] = column
            following = int(torch.where(tried, torch.inf, nearest).argmin())
            step = nearest[following].clone()
            visited = [count, *tried.nonzero().flatten().tolist()]
            of_rows[[owner[one] for one in visited]] += step
            of_columns[visited] -= step
            nearest[~tried] -= step
            column = following
        while column != count:
            owner[column] = owner[before[column]]
            column = before[column]
    found = [0] * count
    for column in range(count):
        found[owner[column]] = column
    return found
