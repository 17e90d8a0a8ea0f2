"""What commands open of a folder: files that lie in it, no links out of it, no pipes, no pickles."""

import json
import os
import pickle
import re
import shutil
import socket
import zipfile
from pathlib import Path

import pytest
import torch
from places import STORIES
from transformers import LlamaForCausalLM

import conversion

SECRET = "a secret of somebody's"
COMMANDS = {
    "convert": ("convert", "{folder}", "{out}", "--no-progress"),
    "back": ("convert", "{folder}", "{out}", "--to", "llama", "--no-progress"),
    "inspect": ("inspect", "{folder}"),
    "generate": ("generate", "{folder}", "--prompt", "Once", "--max-new-tokens", "2"),
    "verify": ("verify", "{folder}", "{folder}", "--new-tokens", "1"),
    "push": ("push", "{folder}", "user/name", "--dry-run"),
}
FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
         "generation_config.json", "chat_template.jinja", "README.md", "LICENSE", "source/manifest.json",
         "additional_chat_templates/a.jinja")  # fmt: skip


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate") / "zoo"
    conversion.convert(STORIES, folder, progress=False)
    return folder


def copy(source, target):
    return Path(shutil.copytree(source, target, symlinks=True))


def commands(folder, out, only=None):
    """Each command line for a folder; of a zoo folder "convert" is the way back."""
    own = json.loads((folder / "config.json").read_text())["model_type"] == "zoo" if only is None else None
    names = only or [name for name in COMMANDS if name != ("convert" if own else "back")]
    return [[part.format(folder=folder, out=out) for part in COMMANDS[name]] for name in names]


def link_out(path):
    outside = next(place for place in path.parents if place.name == "folder").parent / "outside.json"
    outside.write_text(path.read_text() if path.suffix == ".json" and path.exists() else SECRET)
    path.unlink(missing_ok=True)
    path.symlink_to(outside)


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def listening(path):
    path.unlink(missing_ok=True)
    place = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
    finally:
        os.chdir(place)


def device(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def nothing(path):
    path.unlink(missing_ok=True)
    path.symlink_to("gone")


def circle(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [link_out, pipe, listening, device, nothing, circle], ids=lambda make: make.__name__)
@pytest.mark.parametrize("own", [True, False], ids=["zoo folder", "foreign folder"])
@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_of_the_folder_is_refused_by_every_command(name, own, make, zoo, converted, tmp_path):
    folder = copy(converted if own else STORIES, tmp_path / "folder")
    (folder / name).parent.mkdir(exist_ok=True)
    lines = commands(folder, tmp_path / "out")
    make(folder / name)
    for line in lines:
        code, out, err = zoo(*line)
        assert code == 1 and out == "" and err.startswith("zoo: ") and err.count("\n") == 1, (line, err)
        assert name.rpartition("/")[2] in err and "unexpected" not in err and SECRET not in err
        assert not (tmp_path / "out").exists()


def test_a_subfolder_that_is_a_link_out_is_refused(zoo, converted, tmp_path):
    folder = copy(converted, tmp_path / "folder")
    lines = commands(folder, tmp_path / "out")
    (folder / "source").rename(tmp_path / "elsewhere")
    (folder / "source").symlink_to(tmp_path / "elsewhere")
    for line in lines:
        code, _, err = zoo(*line)
        assert code == 1 and "leads out of the folder" in err, line


def test_push_sends_no_file_from_elsewhere(zoo, converted, tmp_path):
    (tmp_path / "id_rsa").write_text(SECRET)
    for name, target in (("notes.txt", tmp_path / "id_rsa"), ("more", tmp_path)):
        folder = copy(converted, tmp_path / f"folder{name}")
        (folder / name).symlink_to(target)
        code, out, err = zoo("push", folder, "user/name", "--dry-run", "--json")
        assert (code, out) == (1, "") and name in err and "leads out of the folder" in err
    folder = copy(converted, tmp_path / "inside")
    (folder / "copy.txt").symlink_to("config.json")
    report = json.loads(zoo("push", folder, "user/name", "--dry-run", "--json")[1])
    assert "copy.txt" in [file["path"] for file in report["files"]]


def test_a_hub_cache_is_full_of_links_that_every_command_follows(zoo, converted, tmp_path):
    for own, source in ((True, converted), (False, STORIES)):
        repository = tmp_path / str(own) / "models--user--stories"
        snapshot = repository / "snapshots" / "0123abcd"
        for number, path in enumerate(path for path in source.rglob("*") if path.is_file()):
            link = snapshot / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            (repository / "blobs").mkdir(exist_ok=True)
            shutil.copyfile(path, repository / "blobs" / f"{number:040x}")
            link.symlink_to(os.path.relpath(repository / "blobs" / f"{number:040x}", link.parent))
        for line in commands(snapshot, tmp_path / f"out{own}"):
            code, _, err = zoo(*line)
            assert (code, err) == (0, ""), line


# -- pickles --------------------------------------------------------------------------------------------------------


class Trap:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def plant(folder):
    for protocol, name in enumerate(("vocab.pkl", "vocab.bin", "vocab.txt", "NOTICE"), start=2):
        (folder / name).write_bytes(pickle.dumps(Trap(), protocol))
    torch.save({"a": Trap()}, folder / "pytorch_model.bin")
    torch.save({"a": Trap()}, folder / "COPYING")
    torch.save({"a": Trap()}, folder / "training_args.bin")
    (folder / "vocab.py").write_text("import os; os.mkdir('pwned')")
    with zipfile.ZipFile(folder / "LICENSE.zip", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Trap()))


def test_pickles_are_neither_opened_nor_carried_along(zoo, converted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for own, source in ((True, converted), (False, STORIES)):
        folder, out = copy(source, tmp_path / str(own)), tmp_path / f"out{own}"
        plant(folder)
        for line in commands(folder, out):
            assert zoo(*line)[0] == 0, line
        assert not (tmp_path / "pwned").exists()
        planted = {path.name for path in folder.iterdir()} - {path.name for path in source.iterdir()}
        assert planted.isdisjoint(path.name for path in out.rglob("*"))
        report = json.loads(zoo("push", folder, "user/name", "--dry-run", "--json")[1])
        sent = {file["path"] for file in report["files"]}
        assert planted - sent == planted - {"vocab.py"}
        assert {*report["left_out"]} == planted - {"vocab.py", "training_args.bin"}


def test_nothing_but_pickles_is_not_pushed(zoo, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    code, out, err = zoo("push", tmp_path, "user/name", "--dry-run")
    assert (code, out) == (1, "") and "adapter_model.bin" in err and "save_pretrained" in err


@pytest.mark.parametrize("name", ["vocab.json", "vocab.txt", "merges.txt", "emoji.json", "tokenizer.model"])
def test_files_of_tokenizers_are_carried_along(name, tmp_path):
    from conversion.files.companions import copy_companions

    (tmp_path / "target").mkdir()
    (tmp_path / name).write_text("{}")
    assert copy_companions(tmp_path, tmp_path / "target") == [name]


# -- generation settings --------------------------------------------------------------------------------------------


def settings(folder, **changes):
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2} | changes))


@pytest.mark.parametrize("own", [True, False], ids=["zoo folder", "foreign folder"])
def test_generate_does_what_the_folders_settings_say(own, zoo, converted, tmp_path):
    folder = copy(converted if own else STORIES, tmp_path / "folder")
    line = ("generate", folder, "--prompt", "Once upon a time", "--json")

    def answer(*options):
        code, out, err = zoo(*line, *options)
        assert (code, err) == (0, "")
        return json.loads(out)

    settings(folder, max_new_tokens=7)
    assert answer()["new_tokens"] == 7 and answer("--max-new-tokens", 9)["new_tokens"] == 9
    greedy = answer("--max-new-tokens", 30)["text"]
    settings(folder, stop_strings=["little girl"], max_new_tokens=60)
    stopped = answer()["text"]
    assert greedy.startswith(stopped) and stopped.rstrip().endswith("little girl")
    settings(folder, num_beams=3, repetition_penalty=1.3, max_new_tokens=20)
    model = LlamaForCausalLM.from_pretrained(STORIES)
    report = answer()
    prompt = torch.tensor([report["tokens"][: report["prompt_tokens"]]])
    expected = model.generate(prompt, max_new_tokens=20, num_beams=3, repetition_penalty=1.3)[0].tolist()
    assert report["tokens"] == expected
    settings(folder, do_sample=True, temperature=1.5, max_new_tokens=24)
    texts = [answer("--seed", seed)["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert answer("--temperature", 0, "--max-new-tokens", 30)["text"] == greedy


def test_a_terminal_obeys_nothing_that_a_model_writes(zoo, converted):
    prompt = "Once \x1b[31mred\x9b2J\x07 upon"
    line = ("generate", converted, "--prompt", prompt, "--max-new-tokens", 3)
    for options in ((), ("--num-beams", 2), ("--json",)):
        code, out, _ = zoo(*line, *options)
        assert code == 0 and "[31mred" in out and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", out)
    assert "\x1b[31mred\x9b2J\x07" in json.loads(out)["text"]
