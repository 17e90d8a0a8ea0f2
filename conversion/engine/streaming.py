"""The tensors of a plan from file to file, none of them whole in memory where it is large.

What only changes its name, or its place in a stack, is copied as bytes from file to file; a stack whose entries are
computed each by itself goes a few entries at a time; the rest one step at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from huggingface_hub.utils import tqdm
from torch import Tensor

from ..files.writer import ShardWriter, nbytes
from .plan import Plan, Step

if TYPE_CHECKING:
    from .incoming import Reader

# Some rows of a tensor.
Rows = Callable[[int, int], Tensor]
# Bytes that are in memory at once, of a tensor that can be cut.
PART = 2**27


@dataclass(frozen=True)
class Piece:
    """`count` numbers of `source` from `first` on are those of `target` from `place` on."""

    source: str
    first: int
    target: str
    place: int
    count: int


class Mover:
    """Writes the tensors of a plan, which `reader` reads, by `writer`.

    `name_of` gives the name of a tensor in the files. Those in `whole` are given to `store`, whole, which decides how
    they are stored; of a large one `restore` is given its rows first, and how many bytes of them may be in memory: it
    says whether it has stored the tensor already.
    """

    def __init__(
        self,
        plan: Plan,
        reader: "Reader",
        writer: ShardWriter,
        name_of: Callable[[str], str] = str,
        whole: frozenset[str] = frozenset(),
        store: Callable[[str, Tensor], None] | None = None,
        restore: Callable[[str, Rows, int], bool] | None = None,
    ):
        self.plan, self.reader, self.writer, self.name_of = plan, reader, writer, name_of
        self.whole, self.store, self.restore = whole, store, restore

    def run(self, progress: bool) -> None:
        """Moves everything."""
        total = sum(nbytes(tensor) for tensor in self.plan.outputs.values())
        with tqdm(total=total, unit="B", unit_scale=True, desc="Converting", disable=not progress) as bar:
            for step in self.plan.steps:
                for done in self._moved(step):
                    bar.update(done)

    def _moved(self, step: Step) -> Iterator[int]:
        """Moves what a step gives, part by part -> bytes of each."""
        pieces, outputs = pieces_of(step, self.plan, self.reader), self.plan.outputs
        stored = self.whole.intersection(step.target_names())
        if stored and self.restore is not None and (rows := self._rows_of(step, pieces)):
            if self.restore(step.target_names()[0], rows, PART):
                yield nbytes(outputs[step.target_names()[0]])
                return
        if pieces and not stored:
            for piece in pieces:
                yield from self._piece(piece)
        elif pieces and all(piece.count == outputs[piece.target].numel() for piece in pieces):
            for piece in pieces:
                tensor = self.reader.read_numbers(piece.source, piece.first, piece.first + piece.count)
                yield self._write(piece.target, tensor.view(outputs[piece.target].shape))
        elif not stored and (entries := entries_of(step, self.plan, self.reader)):
            yield from self._entries(step, entries)
        else:
            for name, tensor in step.run(self.reader.read):
                yield self._write(name, tensor)

    def _rows_of(self, step: Step, pieces: list[Piece]) -> Rows | None:
        """What gives some rows of the one tensor of a step; None where that is small, or takes the whole."""
        (name, *more), outputs = step.target_names(), self.plan.outputs
        if more or nbytes(outputs[name]) <= PART:
            return None
        if len(pieces) == 1 and self.reader.cut(pieces[0].source):
            row, source = outputs[name].shape[1:].numel(), pieces[0]

            def of_numbers(start: int, stop: int) -> Tensor:
                numbers = self.reader.read_numbers(source.source, source.first + start * row, source.first + stop * row)
                return numbers.view(-1, *outputs[name].shape[1:])

            return of_numbers
        entries = entries_of(step, self.plan, self.reader)
        return (lambda start, stop: apply_to(step, self.reader, entries, start, stop)[0]) if entries else None

    def _write(self, name: str, tensor: Tensor) -> int:
        if name in self.whole:
            self.store(name, tensor)
        else:
            self.writer.write(self.name_of(name), tensor)
        return nbytes(tensor)

    def _piece(self, piece: Piece) -> Iterator[int]:
        """A piece in parts: as bytes where the files have them as they are wanted."""
        width, name = self.plan.outputs[piece.target].element_size(), self.name_of(piece.target)
        place, unit = self.reader.place(piece.source), self.reader.cut(piece.source)
        cut = unit and not piece.first % unit
        at_once = max(PART // width // unit, 1) * unit if cut else piece.count
        for first in range(0, piece.count, max(at_once, 1)):
            start, stop = piece.first + first, piece.first + min(first + at_once, piece.count)
            if place is not None:
                path, begin = place
                size = (stop - start) * width
                self.writer.copy(name, (piece.place + first) * width, path, begin + start * width, size)
            else:
                numbers = self.reader.read_numbers(piece.source, start, stop)
                self.writer.write_part(name, piece.place + first, numbers)
            yield (stop - start) * width
        if not piece.count:
            self.writer.write_part(name, piece.place, self.reader.read(piece.source))

    def _entries(self, step: Step, entries: int) -> Iterator[int]:
        """A few entries of a stack at a time."""
        size = sum(nbytes(self.plan.outputs[name]) for name in step.target_names()) // entries
        at_once = max(1, PART // max(1, size))
        for start in range(0, entries, at_once):
            stop = min(start + at_once, entries)
            for names, slot in zip(step.targets, apply_to(step, self.reader, entries, start, stop), strict=True):
                if isinstance(names, list):
                    for name, tensor in zip(names[start:stop], slot, strict=True):
                        yield self._write(name, tensor)
                else:
                    self.writer.write_part(self.name_of(names), start * slot[0].numel(), slot)
                    yield nbytes(slot)


def pieces_of(step: Step, plan: Plan, reader: "Reader") -> list[Piece]:
    """How the numbers of one tensor are those of others, one after another; [] for a step that computes."""
    headers, outputs = reader.headers, plan.outputs
    sources, targets = step.source_names(), step.target_names()
    if step.rule is None or not step.rule.ops:
        if len(sources) != len(targets):
            return []
        return [Piece(one, 0, other, 0, headers[one].numel()) for one, other in zip(sources, targets, strict=True)]
    if len(step.rule.ops) > 1 or (len(step.sources) > 1 and len(step.targets) > 1):
        return []
    into_one = len(targets) == 1 and isinstance(step.targets[0], str)
    if not into_one and not (len(sources) == 1 and isinstance(step.sources[0], str)):
        return []
    names = step.rule.ops[0].one_after_another(step.sources if into_one else step.targets)
    pieces, place = [], 0
    for name in names or []:
        count = (headers if into_one else outputs)[name].numel()
        piece = Piece(name, 0, targets[0], place, count) if into_one else Piece(sources[0], place, name, 0, count)
        pieces.append(piece)
        place += count
    return pieces


def entries_of(step: Step, plan: Plan, reader: "Reader") -> int:
    """How many entries of a stack a step computes each by itself; 0 where it does not, or its tensors are small."""
    outputs = [plan.outputs[name] for name in step.target_names()]
    if step.rule is None or sum(map(nbytes, outputs)) <= PART or not all(op.by_entry for op in step.rule.ops):
        return 0
    slots = [slot for slot in (*step.sources, *step.targets) if isinstance(slot, list)]
    stacks = [plan.outputs[slot].shape for slot in step.targets if isinstance(slot, str)]
    counts = {len(slot) for slot in slots} | {shape[0] for shape in stacks if len(shape) > 2}
    stacked = all(len(shape) > 2 for shape in stacks)
    if len(counts) != 1 or not stacked:
        return 0
    entries = counts.pop()
    whole = (reader.headers[slot].shape[0] % entries for slot in step.sources if isinstance(slot, str))
    return entries if entries and not any(whole) else 0


def apply_to(step: Step, reader: "Reader", entries: int, start: int, stop: int) -> list:
    """The slots that the entries `start` to `stop` of a step's sources give."""

    def part(slot: str | list[str]) -> Tensor | list[Tensor]:
        if isinstance(slot, list):
            return [reader.read(name) for name in slot[start:stop]]
        rows = reader.headers[slot].shape[0] // entries
        return reader.read_rows(slot, start * rows, stop * rows)

    slots = [part(slot) for slot in step.sources]
    return step.rule.to_theirs(slots, step.ctx) if step.backward else step.rule.to_ours(slots, step.ctx)
