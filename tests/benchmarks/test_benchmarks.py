"""The benchmarks run and say what they should; times are nobody's business here."""

import json
import sys

import pytest
import torch
from places import ROOT

import conversion
from benchmarks import __main__ as command
from benchmarks import cases, measuring, peer, whole

TINY = ["--tiny", "--threads", "1", "--rounds", "1", "--dtype", "float32"]


@pytest.fixture
def run(capsys):
    def run(*arguments):
        threads = torch.get_num_threads()
        try:
            assert command.main([*arguments]) == 0
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    return run


def test_without_a_command_the_cases_are_listed(run):
    found = run()
    for case in cases.CASES:
        assert any(line.split()[:2] == [case.kind, case.case] for line in found.splitlines())


@pytest.mark.sampled(2)
# Nobody knows which of equal scores transformers' indexer takes; at these lengths it takes all.
@pytest.mark.parametrize(
    "kind, name, context",
    [
        ("decode", "gqa", 40), ("decode", "mla", 40), ("decode", "dsa", 7), ("decode", "sliding", 40),
        ("decode", "gdn", 70), ("prefill", "sliding", 300), ("prefill", "mla", 40), ("prefill", "dsa", 8),
        ("short", "moe", 16), ("step", "mla", 20), ("step", "dsa", 5), ("train", "gdn", 40), ("train", "moe", 40),
        ("attention", "sliding", 300),
    ],
)  # fmt: skip
def test_a_case_measures_both_and_compares_them(run, kind, name, context):
    found = json.loads(run(kind, "--case", name, "--context", str(context), "--json", *TINY))
    assert found["ratio"] == pytest.approx(found["seconds"]["transformers"] / found["seconds"]["zoo"])
    assert min(found["seconds"].values()) > 0
    assert 0 <= found["difference"] < 1e-4
    assert (found["kind"], found["case"], found["context"]) == (kind, name, context)
    if kind in ("decode", "short"):
        # What moves is description_zoo's count, at one speed for both sides.
        least = {side: found["limit"]["share"][side] * taken for side, taken in found["seconds"].items()}
        assert least == pytest.approx(dict.fromkeys(least, found["limit"]["seconds"]))
        assert found["limit"]["bytes"] > 1000
    if kind != "step":
        assert all(held is None or held >= 0 for held in found["memory"].values())


@pytest.mark.parametrize("name", ["gqa", "mla", "dsa", "sliding"])
def test_bytes_are_the_formulas(run, name):
    found = json.loads(run("bytes", "--case", name, "--context", "300", "--json", *TINY))
    assert found["per_layer"]["zoo"] == found["formula"]
    assert found["reserved"] >= found["formula"]


def test_published_shapes_have_their_published_bytes():
    from benchmarks.cache_bytes import FORMULAS
    from benchmarks.models import their_config

    assert FORMULAS["mla"](their_config("mla"), 2) == 1152
    assert FORMULAS["dsa"](their_config("dsa"), 2) == 1408
    assert FORMULAS["gqa"](their_config("gqa"), 2) == 4096


def test_experts_names_the_default_and_all_others(run):
    found = json.loads(run("experts", "--context", "5", "--json", *TINY))
    assert found["default"] in found["seconds"] and len(found["seconds"]) >= 3
    assert found["difference"] < 1e-4


@pytest.mark.long
def test_a_table_and_a_plot_are_written_and_kept(run, tmp_path):
    pytest.importorskip("matplotlib")
    out = ["--out", str(tmp_path)]
    run("table", "--only", "bytes-mla", "decode-gqa", *out, *TINY)
    run("table", "--only", "bytes-gqa", *out, *TINY)
    page = (tmp_path / "cpu.md").read_text()
    assert "| decode | gqa | 64 |" in page and "- bytes mla" in page and "- bytes gqa" in page
    run("plot", "--min", "8", "--max", "16", "--case", "gqa", "gdn", *out, *TINY)
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "decode.md").read_text()
    assert "| 8 |" in page and "| 16 |" in page and "gated delta rule" in page


def test_a_checkpoint_is_measured(run):
    folder = str(ROOT / "examples" / "stories260K")
    found = run("checkpoint", folder, "--prompt-tokens", "5", "--new-tokens", "3", "--rounds", "1", "--threads", "1")
    assert "largest relative difference" in found and "prefill" in found and "decode" in found


def test_turns_alternate_and_the_first_round_does_not_count():
    order, count = [], iter(range(100))

    def side(name):
        order.append(name)
        return next(count)

    times, last = measuring.alternate({name: lambda name=name: side(name) for name in ("a", "b")}, rounds=2)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert set(times) == set(times.cpu) == {"a", "b"} and last == {"b": 4, "a": 5}


def test_peak_memory_sees_what_is_given_back():
    found = measuring.peak_memory(lambda: torch.zeros(2**24).sum())
    assert found is None or 0.8 * 2**26 < found < 1.5 * 2**26


def test_a_bar_is_met_by_the_worst_of_its_numbers():
    case = cases.Case("short", "gqa", 16, 0.95)
    assert cases.judged(case, {"ratio": 1.0, "prefill": 0.96})["met"]
    assert not cases.judged(case, {"ratio": 1.0, "prefill": 0.9})["met"]
    memory = cases.Case("prefill", "mla", 16, 0.5, "memory")
    assert cases.judged(memory, {"ratio": 1, "memory": {"transformers": 10, "zoo": 5}})["met"]
    assert not cases.judged(memory, {"ratio": 1, "memory": {"transformers": 10, "zoo": None}})["met"]


@pytest.mark.parametrize("case", ["gdn-strong", "kda", "ssd", "step-gdn", "step-kda", "step-ssd", "decode-mamba2"])
def test_recurrences_are_compared_with_the_same_result(case, capsys):
    from benchmarks import recurrences

    threads = torch.get_num_threads()
    try:
        recurrences.main(["--case", case, "--small", "--tokens", "70", "--threads", "1", "--rounds", "1", "--json"])
    finally:
        torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out)
    assert found["case"] == case and found["bar"] > 1
    assert 0 < found["threads"]["1"]["ratio"] and found["threads"]["1"]["difference"] < 1e-5


def test_recurrences_are_kept_in_a_table(tmp_path, capsys):
    from benchmarks import recurrences

    threads = torch.get_num_threads()
    try:
        for case in ("step-gdn", "ssd", "step-gdn"):
            line = ["--case", case, "--small", "--tokens", "70", "--threads", "1", "--rounds", "1", "--memory"]
            recurrences.main([*line, "--write", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    capsys.readouterr()
    page = (tmp_path / "recurrences.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in page if "≥" in line] == ["| ssd", "| step-gdn"]


def test_drafts_change_no_token_and_save_forwards(run):
    sizes = ["--layers", "2", "--hidden-size", "64", "--steps", "6", "--batch", "2", "--new-tokens", "9"]
    found = json.loads(run("mtp", "--depth", "2", "--rounds", "1", "--threads", "1", "--json", *sizes))
    assert [one["drafts"] for one in found["results"]] == [0, 1, 2]
    assert found["results"][0]["acceptance_length"] == 1
    for one in found["results"]:
        assert one["same_tokens"] and 1 <= one["acceptance_length"] <= one["drafts"] + 1
        assert one["tokens_per_second"] > 0 and 1 <= one["sampled_acceptance_length"] <= one["drafts"] + 1


def test_fewer_bits_are_fewer_bytes(run):
    sizes = ["--layers", "1", "--hidden-size", "128", "--context", "5", "--new-tokens", "2"]
    found = json.loads(run("bits", "--rounds", "1", "--threads", "1", "--json", *sizes))
    rows = {one["name"]: one for one in found["results"]}
    assert list(rows) == ["transformers", "zoo", "int8", "int4"] and found["bytes_per_second"] > 0
    whole = rows["zoo"]["bytes"]
    assert rows["transformers"]["bytes"] == whole and all(one["seconds"] > 0 for one in rows.values())
    # Beside the numbers a scale for each row, or a scale and an offset for each 32 of them.
    assert 0.5 * whole < rows["int8"]["bytes"] < 0.53 * whole and rows["int4"]["bytes"] == whole * (4 + 1) / 16


@pytest.mark.long
def test_conversions_are_put_beside_cp(run, tmp_path):
    found = json.loads(run("storage", "--case", "mixtral", "--tiny", "--rounds", "1", "--json", "--out", str(tmp_path)))
    (one,) = found["results"]
    assert one["case"] == "mixtral" and one["cp"]["seconds"] > 0 and one["in"]["cpu"] > 0
    assert one["in"]["memory"] is None or one["in"]["memory"] < 2e9
    assert "| mixtral |" in (tmp_path / "storage.md").read_text()


# -- a whole model, and llama.cpp beside it ----------------------------------------------------------------------------

WHOLE = ["whole", "--case", "tiny", "--contexts", "8", "20", "--prompts", "12", "--chunked", "20", "--rounds", "1"]


@pytest.fixture
def measured(run, tmp_path):
    found = json.loads(run(*WHOLE, "--threads", "1", "--bits", "int8", "--out", str(tmp_path), "--json"))
    return found, tmp_path


def test_a_whole_model_is_measured_beside_transformers(measured):
    found, folder = measured
    assert [(one["kind"], one["tokens"]) for one in found["rows"]] == [
        ("decode", 8), ("decode", 20), ("prompt", 12), ("chunked", 20),
    ]  # fmt: skip
    assert set(found["rows"][0]["seconds"]) == {"transformers", "zoo", "int8"}
    assert all(one["difference"] < 0.05 for one in found["rows"])
    assert all("limit" in one for one in found["rows"][:2])
    assert "| decode, a token | 20 |" in (folder / "whole.md").read_text()
    part = whole.readme_part(folder)
    assert "| prompt, in parts of 512 | 20 |" in part and "--quantize int8" in part
    text = f"before\n{whole.BEGIN}\nold\n{whole.END}\nbehind\n"
    assert whole.part_of(whole.with_part(text, part)) == part and "old" not in whole.with_part(text, part)
    assert whole.readme_part(folder / "none") == ""


def test_the_readme_has_what_was_measured_of_a_whole_model():
    assert whole.part_of(whole.README.read_text(encoding="utf-8")) == whole.readme_part()


def test_an_interpreter_without_llama_cpp_is_refused_in_one_sentence(run):
    for python, why in ((sys.executable, "has no llama_cpp"), ("/nowhere/python", "there is no such interpreter")):
        with pytest.raises(SystemExit, match=f"^--llama-cpp {python}: .*{why}.*[.]$"):
            run(*WHOLE, "--llama-cpp", python)


def test_a_llama_goes_to_llama_cpp_and_comes_back(tmp_path):
    """What is written for llama.cpp is the very model: zoo reads the file, bit for bit."""
    made = whole.models("tiny")
    peer.write_gguf(made["transformers"], tmp_path / "model.gguf")
    found, expected = (
        model.state_dict() for model in (conversion.load(tmp_path / "model.gguf", torch.bfloat16), made["zoo"])
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
