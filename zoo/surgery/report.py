"""What was done: the operations, how exact they are, and what was measured before, after and when healed."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Stage:
    """A model before, after or healed: sizes, and what was measured where a text was given."""

    parameters: int
    cache_bytes_per_token: int
    state_bytes: int = 0
    perplexity: float | None = None
    divergence: float | None = None


@dataclass
class Done:
    """One operation as it was done."""

    name: str
    fields: dict[str, Any]
    before: dict[str, Any]
    layers: list[int]
    exactness: str
    method: str | None = None
    calibration: dict[str, Any] | None = None
    largest_difference: float | None = None  # of the logits, relative, where exactness was verified


@dataclass
class Report:
    """What `operate`, `heal` and `merge` give."""

    source: str
    target: Path | None
    operations: list[Done]
    before: Stage
    after: Stage
    healed: Stage | None = None
    healing: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    positions: list[dict[str, Any]] = field(default_factory=list)  # perplexity by position, where a context grew
    changed: list[str] = field(default_factory=list)  # "3.mixer": what healing fits to the source's outputs
    files: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dtype: str = "float32"
    model: Any = field(default=None, repr=False)  # the new model, where no target was named
    kept_tokens: list[int] | None = field(default=None, repr=False)  # and the old numbers of its tokens, if some went

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything but the model."""
        return {name: value for name, value in asdict(self_without_model(self)).items() if name != "model"}

    def record(self) -> dict[str, Any]:
        """What the new model's config says of its making."""
        stages = {"before": self.before, "after": self.after, "healed": self.healed}
        return {
            "source": self.source,
            "operations": [asdict(done) for done in self.operations],
            "changed": self.changed,
            "healing": self.healing,
            "evaluation": self.evaluation,
            **({"positions": self.positions} if self.positions else {}),
            "dtype": self.dtype,
            **{name: asdict(stage) for name, stage in stages.items() if stage is not None},
        }

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "Report":
        """The inverse of `record`, as far as a config says it."""
        stages = {name: Stage(**record[name]) for name in ("before", "after", "healed") if record.get(name)}
        operations = [Done(**done) for done in record["operations"]]
        kept = {name: record[name] for name in ("changed", "healing", "evaluation", "dtype")}
        return cls(record["source"], None, operations, **stages, **kept, positions=record.get("positions", []))

    def lines(self) -> list[str]:
        """The table that is printed."""
        stages = [stage for stage in (self.before, self.after, self.healed) if stage is not None]
        heads = ["before", "after", "healed"][: len(stages)]
        rows = [("", *heads), ("parameters", *(f"{stage.parameters:,}" for stage in stages))]
        rows.append((f"cache, bytes per token ({self.dtype})", *(f"{s.cache_bytes_per_token:,}" for s in stages)))
        if any(stage.state_bytes for stage in stages):
            rows.append(("state, bytes", *(f"{stage.state_bytes:,}" for stage in stages)))
        if self.evaluation is not None:
            tokens = f"perplexity, {self.evaluation['tokens']:,} tokens"
            rows.append((tokens, *(_number(stage.perplexity) for stage in stages)))
            rows.append(("KL to the source, nats", *(_number(stage.divergence) for stage in stages)))
        for span in self.positions:
            named = f"perplexity, tokens {span['first']:,} to {span['last']:,}"
            rows.append((named, *(_number(span.get(head)) for head in heads)))
        width = max(len(row[0]) for row in rows)
        table = [row[0].ljust(width) + "".join(cell.rjust(14) for cell in row[1:]) for row in rows]
        return [*(self._line(done) for done in self.operations), *map(healing_line, self.healing), *table]

    def _line(self, done: Done) -> str:
        from .planner import ranges

        asked = ", ".join(f"{name}={value}" for name, value in done.fields.items())
        text = f"{done.name}{f' ({asked})' if asked else ''}, {ranges(done.layers)}: {done.exactness}"
        if done.calibration is not None:
            text += f", calibrated on {done.calibration['tokens']:,} tokens of {done.calibration['text']}"
        if done.largest_difference is not None:
            text += f", largest difference of logits {done.largest_difference:.1e}"
        return text


def healing_line(healing: dict[str, Any]) -> str:
    """ "healed 80 steps on outputs, 150 on logits (all) with 1,024 tokens of text.txt"."""
    stages = ", ".join(
        f"{stage['steps']:,} steps on {stage['loss']} ({stage['train']}, rate {stage['learning_rate']:.1e})"
        for stage in healing["stages"]
    )
    return f"healed by {stages} with {healing['tokens']:,} tokens of {healing['text']}"


def self_without_model(report: Report) -> Report:
    """The same report without the model, which would be copied."""
    from dataclasses import replace

    return replace(report, model=None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}"
