"""The target of a conversion: what may be replaced, what stands in the way, and where nobody can move a folder."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from places import ROOT, STORIES, SUPPORT

from conversion import convert
from conversion.errors import ConversionError
from conversion.files.workspace import new_folder


def write(target, text="new", **options):
    """A run that builds a model folder of one file beside config.json."""
    with new_folder(target, **options) as folder:
        (folder / "config.json").write_text('{"model_type": "zoo"}')
        (folder / "model.safetensors").write_text(text)


def content(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture
def target(tmp_path):
    write(tmp_path / "target", "old")
    return tmp_path / "target"


def refused(target, *fragments):
    before = content(target.parent)
    with pytest.raises(ConversionError) as error:
        write(target, overwrite=True)
    assert all(fragment in str(error.value) for fragment in fragments) and "\n" not in str(error.value)
    assert content(target.parent) == before


# -- what may be replaced -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["thesis.tex", ".git/HEAD", "checkpoint-5/model.safetensors", "source/notes.txt", "training_args.bin", "mine.py",
     "data/x", "model.safetensors.bak"],
)  # fmt: skip
def test_overwriting_spares_what_neither_zoo_nor_transformers_wrote(target, name):
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text("years")
    refused(target, "holds more than a model", name if name.startswith("source") else name.partition("/")[0])
    assert (target / name).read_text() == "years" and (target / "model.safetensors").read_text() == "old"


def test_many_strangers_are_counted(target):
    for index in range(9):
        (target / f"page{index}.tex").write_text("")
    refused(target, "page0.tex, page1.tex, page2.tex and 6 more")


@pytest.mark.parametrize("text", ['{"editor": "vim"}', "[]", "not json", '{"model_type": "vim"}', '{"model_type": []}'])
def test_another_programs_config_makes_no_model_folder(target, text):
    (target / "config.json").write_text(text)
    refused(target, "is not a model folder")


def test_a_link_in_the_target_is_not_replaced(target, tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    (target / "LICENSE").symlink_to(tmp_path / "elsewhere")
    refused(target, "LICENSE")
    (tmp_path / "link").symlink_to(target)
    refused(tmp_path / "link", "is not a folder")


def test_all_that_a_conversion_and_a_saved_model_leave_may_be_replaced(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    convert(STORIES, tmp_path / "zoo", progress=False)
    convert(tmp_path / "zoo", tmp_path / "back", to="llama", progress=False)
    for name in ("zoo", "back"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name, trust_remote_code=False)
        model.save_pretrained(tmp_path / name, max_shard_size="200KB")
        AutoTokenizer.from_pretrained(tmp_path / name).save_pretrained(tmp_path / name)
        write(tmp_path / name, overwrite=True)
        assert content(tmp_path / name) == {"config.json", "model.safetensors"}
    assert content(tmp_path) == {"zoo", "back"} | {f"{a}/{b}" for a in ("zoo", "back") for b in content(tmp_path / a)}


def test_what_arrives_while_a_model_is_built_is_spared(target, tmp_path):
    for place, options, said in ((target, {"overwrite": True}, "thesis.tex"), (tmp_path / "new", {}, "not empty")):
        with pytest.raises(ConversionError, match=said), new_folder(place, **options):
            place.mkdir(exist_ok=True)
            (place / "thesis.tex").write_text("years")
        assert (place / "thesis.tex").read_text() == "years"
    assert {path.name for path in tmp_path.iterdir()} == {"target", "new"}


# -- several at once ------------------------------------------------------------------------------------------------


def test_of_many_runs_for_one_target_one_wins_and_the_others_say_so(tmp_path):
    start, outcomes = threading.Barrier(8), []

    def run(number):
        start.wait()
        try:
            write(tmp_path / "target", str(number))
            outcomes.append(number)
        except ConversionError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    (winner,) = (outcome for outcome in outcomes if isinstance(outcome, int))
    losers = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert all("another run" in loser or "is not empty" in loser for loser in losers) and len(losers) == 7
    assert (tmp_path / "target" / "model.safetensors").read_text() == str(winner)
    assert content(tmp_path) == {"target", "target/config.json", "target/model.safetensors"}


def test_a_lock_whose_folder_just_goes_away_is_asked_for_again(monkeypatch, tmp_path):
    """The run before removes the place of the lock while this one reaches for it."""
    acquire, gone = FileLock.acquire, [FileNotFoundError(errno.ENOENT, "gone"), FileExistsError(errno.EEXIST, "there")]

    def reach(lock, *args, **kwargs):
        if gone:
            raise gone.pop()
        return acquire(lock, *args, **kwargs)

    monkeypatch.setattr(FileLock, "acquire", reach)
    write(tmp_path / "target")
    assert content(tmp_path) == {"target", "target/config.json", "target/model.safetensors"}


# -- places where a folder stays ------------------------------------------------------------------------------------


@pytest.fixture
def mounted(monkeypatch, tmp_path):
    """A folder that the system does not let anybody move, as it does with a mount point."""
    (tmp_path / "mounted" / "lost+found").mkdir(parents=True)
    real = os.replace

    def replace(source, target):
        if Path(source) == tmp_path / "mounted":
            raise OSError(errno.EBUSY, "Device or resource busy", str(source))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    return tmp_path / "mounted"


def test_a_mount_point_is_filled(mounted):
    write(mounted)
    assert content(mounted.parent) == {"mounted"} | {
        f"mounted/{name}" for name in ("lost+found", "config.json", "model.safetensors")
    }


def test_a_model_in_a_mount_point_is_refused_before_the_work(mounted):
    write(mounted)
    refused(mounted, "cannot be replaced as a whole", "name a folder inside it")
    write(mounted / "inside")
    assert content(mounted / "inside") == {"config.json", "model.safetensors"}


def test_a_target_in_a_folder_that_cannot_be_written_is_filled(monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and real(path, mode))
    write(tmp_path / "out")
    assert content(tmp_path) == {"out", "out/config.json", "out/model.safetensors"}
    refused(tmp_path / "out", "cannot be replaced as a whole")


def test_a_folder_that_nothing_can_be_built_in_is_named(monkeypatch, tmp_path):
    def refuse(lock):
        raise PermissionError(errno.EACCES, "Permission denied", str(lock.lock_file))

    monkeypatch.setattr("conversion.files.workspace.FileLock.acquire", refuse)
    with pytest.raises(ConversionError, match=f"built in {tmp_path}: make that writable"):
        write(tmp_path / "new")


MOUNTS = """
import subprocess, sys
from test_workspace import refused, write
from pathlib import Path

fresh, bound, other = (Path(sys.argv[1]) / name for name in ("fresh", "bound", "other"))
for place in (fresh, bound, other):
    place.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "none", fresh], check=True)
subprocess.run(["mount", "--bind", other, bound], check=True)
for place in (fresh, bound):
    write(place)
    assert sorted(path.name for path in place.iterdir()) == ["config.json", "model.safetensors"]
    refused(place, "cannot be replaced as a whole")
"""


@pytest.mark.long
def test_mount_points_of_the_system_are_filled(tmp_path):
    """Another device, and a folder of the same one, which nothing but an attempt tells from others."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no name spaces for mounts here")
    command = ["unshare", "-rm", sys.executable, "-c", MOUNTS, tmp_path]
    path = os.pathsep.join(map(str, (ROOT, SUPPORT, ROOT / "tests" / "conversion")))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_that_died_while_it_filled_a_mount_point_is_ended_by_the_next(mounted):
    (mounted / ".zoo-work" / "moving").mkdir(parents=True)
    (mounted / ".zoo-work" / "moving" / "config.json").write_text('{"model_type": "zoo"}')
    (mounted / "model.safetensors").write_text("old")
    with pytest.raises(ConversionError, match="is not empty"):
        write(mounted)
    assert content(mounted) >= {"config.json", "model.safetensors"} and ".zoo-work" not in content(mounted)


def test_the_longest_names_work_and_longer_ones_are_refused(tmp_path):
    write(tmp_path / ("é" * 127))
    assert len(content(tmp_path)) == 3
    with pytest.raises(ConversionError, match="name too long"):
        write(tmp_path / ("é" * 128))


def test_everything_is_on_the_disk_before_it_is_moved(monkeypatch, tmp_path):
    steps, fsync, rename = [], os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(os, "rename", lambda one, other: (rename(one, other), steps.append("moved")))
    write(tmp_path / "target")
    before, after = steps[: steps.index("moved")], steps[steps.index("moved") + 1 :]
    made = [tmp_path / "target", *(tmp_path / "target").iterdir()]
    assert {path.stat().st_ino for path in made} <= {*before} and after == [tmp_path.stat().st_ino]


def test_a_failed_run_leaves_no_parents_either(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a" / "b" / "c"):
        1 / 0  # noqa: B018
    assert content(tmp_path) == set()
    write(tmp_path / "a" / "b")
    assert json.loads((tmp_path / "a" / "b" / "config.json").read_text()) == {"model_type": "zoo"}
