"""The check of a GPU, on a CPU and in small: that every section measures, notices what is wrong, and survives it."""

import os
import subprocess
import sys
import time
import traceback

import pytest
import torch
from places import ROOT

from benchmarks.gpu import core, correct, launches, page, workers
from benchmarks.gpu.command import Check
from benchmarks.gpu.forms import CHOOSERS, plain_forms
from benchmarks.gpu.harness import Item, Options, Run, Section, perform
from benchmarks.gpu.page import Results
from benchmarks.gpu.sections import SECTIONS, find, wanted
from benchmarks.gpu.steps import ratios_of
from modeling_zoo import ops_attention, ops_attention_triton

# What a row of a section must hold.
VALUES = {
    "ceilings": "copy_GBps", "correct": "worst", "traced": "difference", "waits": "waits", "graph": "captured",
    "launches": "operations", "growth": "GiB", "prompts": "TFLOPS", "core": "share", "steps": "us",
    "compiled": "graphs", "generate": "tokens_per_s", "fla": "skipped",
}  # fmt: skip
COMPILING = ("traced", "compiled")


def rows_of(section, mixers=("gqa",), title=None):
    """The rows of the first item of a section, or of that with a title, in this process."""
    rows = []
    run = Run(Options(device="cpu", mixers=mixers), rows.append, ceilings={"copy_GBps": 10.0, "bf16_TFLOPS": 1.0})
    perform(run, section.name, next(item for item in section.items(run) if title in (None, item.title)))
    return rows


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in COMPILING else ()) for name in VALUES]
)
def test_a_section_measures(name):
    rows = rows_of(find(name))
    assert [row for row in rows if "error" in row or row.get("met") is False] == []
    assert VALUES[name] in rows[0] and rows[0]["section"] == name


def test_every_section_is_tried():
    # What only compiles ahead gives no rows.
    assert {section.name for section in SECTIONS} == {*VALUES, "warm"}


@pytest.mark.parametrize("mixer", ["sparse", "sinks", "gated_delta_net"])
def test_every_way_of_a_mixer_is_right(mixer):
    (row,) = rows_of(find("correct"), (mixer,))
    assert row["met"] and row["ways"] >= 5 and 0 < row["worst"] < 0.5


def test_a_wrong_result_is_noticed(monkeypatch):
    right = correct.decoded
    monkeypatch.setattr(correct, "decoded", lambda run, model, kind: right(run, model, kind) * (1 + (kind == "static")))
    (row,) = rows_of(find("correct"))
    assert not row["met"] and {way.split()[2] for way in row["bad"]} == {"static"}


@pytest.mark.parametrize(
    "name, title", [("multi_query_attention", "mla 64×1"), ("attention", "gqa 64×1"), ("read_gathered", "dsa 64×1")]
)
def test_what_is_wrong_in_the_last_row_is_not_timed(monkeypatch, name, title):
    right = getattr(core, name)

    def wrong(*args):
        found = right(*args)
        states = found[0] if isinstance(found, tuple) else found
        states[-1] *= 1.1
        return found

    monkeypatch.setattr(core, name, wrong)
    (row,) = rows_of(find("core"), title=f"{title} chosen")
    assert "wrong by" in row["error"]


def test_what_fails_is_a_row_and_the_rest_goes_on(monkeypatch):
    right = correct.decoded

    def broken(run, model, kind):
        return right(run, model, kind) if kind == "none" else torch.zeros(2)[5]

    monkeypatch.setattr(correct, "decoded", broken)
    (row,) = rows_of(find("correct"))
    assert not row["met"] and all("IndexError" in error for error in row["bad"].values())
    assert row["ways"] > len(row["bad"]) > 0


def test_plain_forms_choose_no_kernel(monkeypatch):
    for name in CHOOSERS:
        assert callable(getattr(ops_attention_triton, name))
    monkeypatch.setattr(ops_attention, "use_triton", lambda states: True)
    with plain_forms():
        assert not ops_attention.use_triton(torch.zeros(1))
    assert ops_attention.use_triton(torch.zeros(1))


def test_where_the_host_waits_is_said_by_lines_of_zoo_and_of_what_it_called():
    def stack(*files):
        return [traceback.FrameSummary(file, 7, "f", line="") for file in files]

    packages = "/opt/torch/site-packages"
    ours, theirs = "/x/modeling_zoo/attention_masks.py", f"{packages}/transformers/masking_utils.py"
    beyond = (f"{packages}/torch/_tensor.py", "/usr/lib/warnings.py", launches.__file__)
    assert launches.place(stack("/x/run.py", ours, theirs, *beyond)) == "attention_masks.py:7 f > masking_utils.py:7 f"
    assert launches.place(stack(theirs, ours, *beyond)) == "attention_masks.py:7 f"


# -- processes -----------------------------------------------------------------------------------------------------


def crewed(monkeypatch, works, seconds=5.0, together=False, grace=0.5):
    """Rows of a section whose items do `works`, by processes."""

    def items(run):
        return [Item(f"item {i}", lambda work=work: work(run), needs=0.0) for i, work in enumerate(works)]

    section, rows = Section("made up", items, 1, together=together), []
    monkeypatch.setattr("benchmarks.gpu.sections.SECTIONS", (section,))
    monkeypatch.setattr(workers, "GRACE", grace)
    options = Options(device="cpu", workers=2)
    workers.Crew(section, options, time.time() + seconds, {}, rows.append).run()
    return {row["name"]: row for row in rows}


def good(run):
    return {"value": 1}


def raises(run):
    raise ValueError("no\nsecond line")


def dies(run):
    os._exit(9)


def loses_the_device(run):
    def gone():
        raise RuntimeError("CUDA error")

    run.wait = gone
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("together", [False, True])
def test_a_process_that_dies_takes_one_item_with_it(monkeypatch, together):
    rows = crewed(monkeypatch, [good, dies, good, raises, loses_the_device, good], together=together)
    assert [rows[f"item {i}"].get("value") for i in range(6)] == [1, None, 1, None, None, 1]
    assert "exit code 9" in rows["item 1"]["error"]
    assert rows["item 3"]["error"] == "ValueError: no"
    assert "illegal memory access" in rows["item 4"]["error"]


def test_what_hangs_is_ended_and_the_rest_is_said_to_be_skipped(monkeypatch):
    begun = time.time()
    rows = crewed(monkeypatch, [good, lambda run: time.sleep(60), good], seconds=0.5)
    assert time.time() - begun < 20
    assert rows["item 0"]["value"] == 1 and "no time left" in rows["item 1"]["skipped"]
    assert rows["item 2"]["skipped"] == "no time left"


def test_a_device_that_no_fork_can_use_is_reached_by_processes_that_start_anew(monkeypatch, tmp_path):
    check, started = Check(Options(device="cpu", seconds=60, out=str(tmp_path))), []

    def work(section, stop, ceilings):
        started.append((section.name, check.options.start, ceilings))
        values = {"copy_GBps": 7.0, "device": "a card"} if check.options.start == "spawn" else {"error": "no device"}
        check.add({"section": section.name, "name": "one", **values})

    monkeypatch.setattr(check, "work", work)
    check.run(wanted(("growth",)))
    assert [(name, start) for name, start, _ in started] == [
        ("ceilings", "fork"), ("ceilings", "spawn"), ("growth", "spawn"),
    ]  # fmt: skip
    kept = Results.read(tmp_path / "gpu.json")
    assert started[-1][2]["copy_GBps"] == 7.0 and kept.info["device"] == "a card" and not kept.failed()


@pytest.mark.long
def test_the_whole_check_runs(tmp_path):
    line = [sys.executable, "-m", "benchmarks", "gpu", "--device", "cpu", "--seconds", "600", "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=700)
    assert done.returncode == 0, done.stderr[-2000:]
    results = Results.read(tmp_path / "gpu.json")
    assert {row["section"] for row in results.rows} == set(VALUES) - {"fla"}
    assert [row for row in results.rows if "error" in row or "skipped" in row] == []
    assert [row["name"] for row in results.of("correct", met=False)] == []
    assert f"{len(results.rows)} rows" in done.stdout and (tmp_path / "gpu.md").is_file()


# -- what is said of it --------------------------------------------------------------------------------------------


def test_ratios_are_of_the_best_of_each_cache_and_without_planning():
    times = {
        ("transformers", "dynamic"): {"us": 50.0, "us_without_cudnn": 6.0}, ("zoo", "dynamic"): {"us": 4.0},
        ("transformers", "static"): {"us": 3.0}, ("zoo", "static"): {"us": 2.0},
    }  # fmt: skip
    found = ratios_of(times)
    assert (found["ratio"], found["dynamic_ratio"], found["static_ratio"]) == (1.5, 12.5, 1.5)
    assert found["dynamic_ratio_without_cudnn"] == 1.5 and found["note"]
    assert ratios_of({("zoo", "static"): {"us": 2.0}}) == {}


def test_the_readme_says_what_was_measured():
    assert page.part_of(page.README.read_text(encoding="utf-8")) == page.readme_part()
    for path in page.RESULTS.glob("gpu*.json"):
        assert path.with_suffix(".md").read_text(encoding="utf-8") == page.page(Results.read(path))


def test_the_part_of_the_readme_is_absent_without_results_and_replaced_with_them(tmp_path):
    assert page.readme_part(tmp_path) == ""
    rows = [
        {"section": "ceilings", "name": "", "copy_GBps": 2000.0},
        {"section": "correct", "name": "gqa", "ways": 3, "bad": {"a": 1.0}},
        {"section": "traced", "name": "gqa, float32", "met": True},
        {"section": "traced", "name": "gqa, bfloat16", "met": False},
        {"section": "core", "name": "", "model": "mla", "context": 32768, "batch": 8, "form": "chosen", "share": 0.5},
    ]
    for side, us in (("transformers", 3000.0), ("zoo", 1500.0)):
        case = {"section": "steps", "name": "", "model": "gqa", "context": 32768, "batch": 1}
        rows.append(case | {"side": side, "cache": "static", "us": us})
        rows.append({"section": "prompts", "name": "", "model": "gqa", "side": side, "ms": us / 100})
    Results({"device": "a card"}, rows).write(tmp_path, page.NAME)
    part = page.readme_part(tmp_path)
    said = " ".join(part.split())
    assert "1 of 1 mixers were compared in 3 ways" in said and "2 are within" in said and "3.00 → 1.50 (2 ×)" in said
    assert "Compiled, 1 of 2 are right" in said
    assert "2,000 GB/s: latent, 128 heads 0.50" in said and "grouped queries 30.0 → 15.0 (2.00 ×)" in said
    text = f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n"
    assert page.with_part(text, part) == f"before\n{page.BEGIN}\n{part}{page.END}\nafter\n"
    assert page.part_of(page.with_part(text, part)) == part
