"""Documents in rows of one length, each beginning at its own position 0.

    best_fit      longest first, each into the fullest row that has room (best-fit decreasing, Ding et al. 2024, arXiv
                  2404.10830): documents up to a row's length are never cut, and little is left over
    concatenated  one behind another, cut wherever a row ends

`position_ids` that begin again tell documents apart, to attention and to recurrences; what fills a row up is a document
of its own without labels.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

IGNORED = -100


def best_fit(lengths: list[int], size: int) -> list[list[int]]:
    """Bins of at most `size`: lists of indices of `lengths`, none of which is longer than `size`."""
    bins: list[list[int]] = []
    # (room, bin), smallest first: the first that is no smaller than a document is the fullest with room.
    rooms: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(rooms, (lengths[index], 0))
        if place == len(rooms):
            room, number = size, len(bins)
            bins.append([])
        else:
            room, number = rooms.pop(place)
        bins[number].append(index)
        if room - lengths[index]:
            insort(rooms, (room - lengths[index], number))
    return bins


def pieces(document: list[int], size: int) -> Iterator[list[int]]:
    """A document in parts of at most `size` tokens, each beginning with the last token of the one before, so that every
    token but the document's first is predicted once."""
    for start in range(0, max(len(document) - 1, 1), size - 1):
        yield document[start : start + size]


def make_row(parts: Iterable[list[int]], size: int, filler: int) -> dict[str, list[int]]:
    """One row of parts of documents: nothing predicts the first token of a part, which what is before does not know."""
    row: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
    for part in parts:
        row["input_ids"] += part
        row["labels"] += [IGNORED, *part[1:]]
        row["position_ids"] += range(len(part))
    rest = size - len(row["input_ids"])
    row["input_ids"] += [filler] * rest
    row["labels"] += [IGNORED] * rest
    row["position_ids"] += range(rest)
    return row


def pack(
    documents: Iterable[list[int]], size: int, filler: int, packing: str = "best_fit", buffer: int = 10_000
) -> Iterator[dict[str, list[int]]]:
    """Token ids of documents → rows of `size` tokens. Best fit looks at `buffer` documents at a time, gives full rows
    in the order of the text, and hands what is in the others on to the next buffer."""
    if packing == "concatenated":
        yield from concatenate(documents, size)
        return
    waiting: list[list[int]] = []
    for document in documents:
        waiting += pieces(document, size)
        if len(waiting) >= buffer:
            rows = best_fit([len(part) for part in waiting], size)
            full = [row for row in rows if sum(len(waiting[index]) for index in row) > 0.95 * size] or rows
            yield from (make_row((waiting[index] for index in row), size, filler) for row in in_reading_order(full))
            packed = {index for row in full for index in row}
            waiting = [part for index, part in enumerate(waiting) if index not in packed]
    rows = best_fit([len(part) for part in waiting], size)
    yield from (make_row((waiting[index] for index in row), size, filler) for row in in_reading_order(rows))


def in_reading_order(rows: list[list[int]]) -> list[list[int]]:
    """Rows and what is in them as the text had them: packed, the longest documents would all come first."""
    return sorted(sorted(row) for row in rows)


def concatenate(documents: Iterable[list[int]], size: int) -> Iterator[dict[str, list[int]]]:
    """Rows that are full; what a document has left goes into the next row. What fills no last row is dropped."""
    parts: list[list[int]] = []
    room = size
    for document in documents:
        while document:
            parts.append(document[:room])
            document = document[room:]
            room -= len(parts[-1])
            if not room:
                yield make_row(parts, size, 0)
                parts, room = [], size
