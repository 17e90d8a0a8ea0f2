"""What can be measured: kinds of measurement, the cases of each, the context and the bar of each case."""

from dataclasses import dataclass, field, replace

import torch

from . import attention, cache_bytes, decode, experts, measuring, prefill, short, training


@dataclass
class Options:
    """How to measure; `fields` are changes to the model's config, {case or "": {field: value}}."""

    rounds: int = 3
    dtype: torch.dtype = torch.bfloat16
    device: str = "cpu"
    tiny: bool = False
    fields: dict = field(default_factory=dict)

    def changes(self, case: str) -> dict:
        return {**self.fields.get("", {}), **self.fields.get(case, {})}


# kind -> (what runs it, what shows it)
KINDS = {
    "decode": (decode.decode, measuring.show),
    "prefill": (prefill.prefill, measuring.show),
    "short": (short.short, measuring.show),
    "step": (attention.step, measuring.show),
    "attention": (attention.band, measuring.show),
    "bytes": (cache_bytes.cache_bytes, cache_bytes.show),
    "experts": (experts.experts, experts.show),
    "train": (training.train, measuring.show),
}
# transformers holds every score of a latent prompt at once on a CPU, and the indexer's products of all heads: what fits
# into the memory of a desk machine has fewer heads, each as large as published.
FEW_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
# A square of scores per head takes minutes.
EIGHT_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2}
FEW_INDEX_HEADS = FEW_HEADS | {"index_n_heads": 2}
# A step of training: every layer counts, not the width of one.
NARROW = {"vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1408}
TRAINED = {
    "gqa": {"num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64},
    "mla": {
        **{"num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 8, "kv_lora_rank": 128},
        **{"q_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
    },
    "moe": {
        **{"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64},
        **{"num_experts": 16, "num_experts_per_tok": 4},
    },
    "gdn": {
        **{"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "linear_num_key_heads": 4},
        **{"linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64},
    },
}
# Rounds by case: many where a token takes milliseconds, few where it takes seconds.
SHORT = {"gqa": 15, "mla": 5, "dsa": 2, "sliding": 15, "gdn": 15, "moe": 15}


@dataclass
class Case:
    """One line of the table: `bar` is what `measure` (a key of the result, or "memory") must reach."""

    kind: str
    case: str
    context: int
    bar: float | None = None
    measure: str = "ratio"
    fields: dict = field(default_factory=dict)
    rounds: int | None = None


CASES = [
    Case("decode", "gqa", 16384, 1.3),
    Case("decode", "mla", 8192, 10.0),
    Case("decode", "dsa", 8192, 20.0, rounds=2),
    Case("decode", "sliding", 16384),
    Case("decode", "gdn", 16384),
    Case("step", "mla", 8192),
    Case("step", "dsa", 32768, 100.0, rounds=1),
    Case("attention", "sliding", 16384, 5.0, fields=EIGHT_HEADS, rounds=1),
    Case("prefill", "sliding", 8192, 2.0, rounds=1),
    Case("prefill", "sliding", 16384, 0.5, "memory", EIGHT_HEADS, rounds=0),
    Case("prefill", "mla", 16384, 0.5, "memory", FEW_HEADS, rounds=0),
    Case("prefill", "dsa", 16384, 0.5, "memory", FEW_INDEX_HEADS, rounds=0),
    *(Case("short", name, count, 0.95, rounds=SHORT[name]) for name in SHORT for count in (32, 256)),
    *(Case("train", name, 1024, 0.98, "cpu_ratio", NARROW | TRAINED[name], 5) for name in TRAINED),
    Case("bytes", "gqa", 4096),
    Case("bytes", "mla", 4096),
    Case("bytes", "dsa", 4096),
    Case("bytes", "sliding", 4096),
    Case("experts", "moe", 1),
    Case("experts", "moe", 256),
]  # fmt: skip


def find(kind: str, name: str, context: int | None = None) -> Case:
    """The case of that kind and name: the one in the table at this context, or its first without a bar elsewhere."""
    named = [case for case in CASES if (case.kind, case.case) == (kind, name)]
    exact = [case for case in named if context in (None, case.context)]
    return exact[0] if exact else replace(named[0], context=context, bar=None)


def run(case: Case, options: Options) -> dict:
    """The measurement of a case, with its bar and whether it is met."""
    here = Options(
        options.rounds if case.rounds is None else case.rounds,
        options.dtype,
        options.device,
        options.tiny,
        {**({} if options.tiny else {case.case: case.fields}), **options.fields},
    )
    torch.manual_seed(0)
    found = KINDS[case.kind][0](case.case, case.context, here)
    return found | {"fields": case.fields, **judged(case, found)}


def judged(case: Case, found: dict) -> dict:
    """{"bar": …, "met": …} of a measurement; nothing where there is no bar."""
    if case.kind == "bytes":
        return {"met": found["equal"]}
    if case.bar is None:
        return {}
    if case.measure == "memory":
        memory = found["memory"]
        share = memory["zoo"] / memory["transformers"] if all(memory.values()) else None
        return {"bar": f"memory ≤ {case.bar}", "share": share, "met": share is not None and share <= case.bar}
    ratio = found[case.measure]
    worst = min(ratio, found.get("prefill", ratio))
    return {"bar": f"≥ {case.bar:g}", "met": worst >= case.bar}
