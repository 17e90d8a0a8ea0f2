"""All cases as one table, written to benchmarks/results."""

import json
import os
import platform
from pathlib import Path

import torch
import transformers

from . import cases
from .measuring import in_words

HERE = Path(__file__).parent


def machine(options: cases.Options) -> str:
    """The machine and the versions, in words."""
    if torch.device(options.device).type == "cuda":
        device = torch.cuda.get_device_name(options.device)
    else:
        device = f"{os.cpu_count()} cores of {processor()}, {torch.get_num_threads()} threads"
    dtype = str(options.dtype).removeprefix("torch.")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{device}; {dtype}; {versions}"


def processor() -> str:
    """The processor's name and whether it computes in bfloat16."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    has_units = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return f"{name} ({'with' if has_units else 'without'} bfloat16 units)"


def folder_of(arguments) -> Path:
    folder = Path(arguments.out) if arguments.out else HERE / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def rows(found: list[dict]) -> list[str]:
    """A measurement per row."""
    head = [
        "kind",
        "case",
        "context",
        "transformers",
        "zoo",
        "ratio",
        "of the limit",
        "memory transformers → zoo",
        "difference",
        "target",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for one in found:
        if one["kind"] in ("bytes", "experts"):
            continue
        times, memory = one["seconds"], one["memory"]
        held = " → ".join(in_words(memory.get(side), "B") for side in ("transformers", "zoo")) if memory else ""
        ratio = f"{one['ratio']:.2f}" + (f" ({one['cpu_ratio']:.2f})" if "cpu_ratio" in one else "")
        for key, word in (("layer", "whole layer"), ("prefill", "prefill")):
            ratio += f", {word} {one[key]:.2f}" if key in one else ""
        ratio += f" ({one['prefill_cpu']:.2f})" if "prefill_cpu" in one else ""
        bar = one.get("bar", "") and f"{one['bar']}: {'met' if one['met'] else 'missed'}"
        if one.get("share") is not None:
            held += f" ({one['share']:.2f})"
        case = one["case"] + "".join(f", {name}={value}" for name, value in one["fields"].items())
        # Set by hand in the results where other work ran beside the measurement.
        case += ", on a busy machine" if one.get("busy") else ""
        cells = [
            one["kind"],
            case,
            str(one["context"]),
            in_words(times["transformers"], "s"),
            in_words(times["zoo"], "s"),
        ]
        shares = one.get("limit", {}).get("share", {})
        reached = " → ".join(f"{shares[side]:.0%}" for side in ("transformers", "zoo")) if shares else ""
        lines.append("| " + " | ".join([*cells, ratio, reached, held, f"{one['difference']:.1e}", bar]) + " |")
    return lines


def write(arguments, options: cases.Options) -> str:
    """Runs every case, or those named; earlier results of other cases in the same file are kept."""
    folder, name = folder_of(arguments), arguments.name
    store = folder / f"{name}.json"
    known = json.loads(store.read_text()) if store.is_file() else {}
    for case in cases.CASES:
        if arguments.only and not {case.kind, case.case, f"{case.kind}-{case.case}"} & set(arguments.only):
            continue
        if options.tiny:
            case = cases.Case(case.kind, case.case, min(case.context, 64), case.bar, case.measure)
        found = cases.run(case, options)
        known[f"{case.kind} {case.case} {case.context}"] = found
        print(cases.KINDS[case.kind][1](found), flush=True)
        store.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    order = [f"{case.kind} {case.case} {case.context}" for case in cases.CASES]
    found = [known[key] for key in sorted(known, key=lambda key: order.index(key) if key in order else len(order))]
    lines = ["# zoo against transformers", "", f"`python -m benchmarks table --name {name}` on {machine(options)}.", ""]
    lines += ["Ratio: transformers' median over zoo's, alternately in one process, on the same converted weights."]
    lines += ["In brackets the same in processor time of all threads, which other work on the machine disturbs less."]
    lines += [
        "Of the limit: the time that moving a token's bytes takes at the measured read speed, over what was taken."
    ]
    lines += ["Memory is the peak beyond what was held before: weights are not in it, a prompt's cache is."]
    lines += [
        "Hundredths of difference are tokens whose random router was undecided: rounding decides. A recurrent state "
        "carries that on, to tenths in gdn: either side is further from float32, where both agree to 3e-6.",
        "",
    ]
    lines += rows(found)
    for kind in ("bytes", "experts"):
        here = [f"- {cases.KINDS[kind][1](one)}" for one in found if one["kind"] == kind]
        lines += ["", *here] if here else []
    page = folder / f"{name}.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"written: {page}"
