"""`owner/name[@revision]` where a folder may stand: through the real client from a Hub on loopback."""

import json
import shutil
from pathlib import Path

import pytest
from hub_fixtures import TOKENS, point_at, use_token
from hub_server import Hub
from huggingface_hub import HfApi
from places import STORIES

import conversion
import zoo as face
from conversion.errors import ConversionError

PROMPT = ("--prompt", "Once upon a time", "--max-new-tokens", 5, "--temperature", 0)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names") / "zoo"
    conversion.convert(STORIES, folder, progress=False)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path, converted):
    """Has `user/llama`, with two heads of one layer fewer on the branch `small`, and `user/zoo`."""
    with Hub(TOKENS) as hub:
        point_at(monkeypatch, hub, tmp_path / "cache")
        api = HfApi()
        for name, folder in {"user/llama": STORIES, "user/zoo": converted}.items():
            api.create_repo(name)
            api.upload_folder(repo_id=name, folder_path=folder)
        small = json.loads((STORIES / "config.json").read_text()) | {"num_hidden_layers": 2}
        api.create_branch("user/llama", branch="small")
        api.upload_file(
            path_or_fileobj=json.dumps(small).encode(),
            path_in_repo="config.json",
            repo_id="user/llama",
            revision="small",
        )
        hub.requests.clear()
        yield hub
        from huggingface_hub.utils import close_session

        close_session()


def test_inspect_reads_config_json_alone(hub, zoo):
    for name, same in (("user/llama", STORIES), ("user/zoo", STORIES)):
        there, here = (json.loads(zoo("inspect", model, "--json")[1]) for model in (name, same))
        assert there == {key: value for key, value in here.items() if not key.startswith("stored")}
    got = {path for method, path in hub.requests if method == "GET"}
    assert {path.rpartition("/")[2] for path in got} == {"config.json"}
    assert face.inspect("user/llama@small")["parameters"] < there["parameters"]


def test_a_packed_repository_is_called_so_without_its_weights(hub, zoo):
    raw = json.loads((STORIES / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    HfApi().create_repo("user/packed")
    HfApi().upload_file(
        path_or_fileobj=json.dumps(raw).encode(), path_in_repo="config.json", repo_id="user/packed", revision="main"
    )
    code, out, err = zoo("inspect", "user/packed")
    assert code == 0 and "stored as   fp8\n" in out, err


@pytest.mark.parametrize("name", ["user/llama", "user/zoo"])
def test_generate_and_verify_take_a_repository(hub, zoo, converted, name):
    assert zoo("generate", name, *PROMPT)[1] == zoo("generate", converted, *PROMPT)[1] != ""
    code, out, err = zoo("verify", "user/llama", name, "--json")
    assert code == 0 and json.loads(out)["equal"], err
    assert not any(path.endswith(".py") for _, path in hub.requests)


def test_trusted_code_is_fetched_and_run(hub, zoo, converted):
    code, out, err = zoo("generate", "user/zoo", *PROMPT, "--trust-remote-code")
    assert code == 0 and out == zoo("generate", converted, *PROMPT)[1], err
    assert any(path.endswith("/modeling_zoo.py") for _, path in hub.requests)


def test_a_commit_is_converted_and_named(hub, zoo, tmp_path):
    sha = hub.repositories["user/llama"].find("main")
    assert zoo("convert", f"user/llama@{sha}", tmp_path / "zoo")[0] == 0
    assert conversion.load("user/llama@main").config.num_hidden_layers == 5


def test_the_code_of_a_repository_is_compared(hub, zoo):
    assert zoo("export", "user/zoo", "--check")[0] == 0
    code, _, err = zoo("export", "user/zoo")
    assert code == 1 and "user/zoo is not a folder" in err
    code, _, err = zoo("export", "user/llama", "--check")
    assert code == 1 and "of type 'llama'" in err


REFUSED = {
    "no repository": ("user/lama", "no such repository that you may see"),
    "no revision": ("user/llama@large", "no revision 'large' of user/llama"),
    "not a name": ("user/llama/x", "neither a folder nor"),
    "no model": ("user/notes", "has no config.json"),
}


@pytest.mark.parametrize("command", [("inspect",), ("generate", *PROMPT), ("export", "--check")], ids=lambda c: c[0])
@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hub_does_not_give_is_one_sentence(hub, zoo, command, case):
    HfApi().create_repo("user/notes")
    name, said = REFUSED[case]
    code, out, err = zoo(command[0], name, *command[1:])
    assert (code, out) == (1, "") and said in err and err.count("\n") == 1, err


def test_who_may_not_see_it_and_who_is_offline(hub, zoo, monkeypatch, tmp_path):
    hub.repositories["user/zoo"].private = True
    use_token(monkeypatch, "hf_of_guest")
    assert "that you may see" in zoo("inspect", "user/zoo")[2]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConversionError, match="cannot be asked"):
        conversion.load("user/never-seen")


def test_what_is_here_goes_before_the_hub(hub, zoo, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("user").mkdir()
    shutil.copytree(STORIES, "user/lama")
    assert zoo("inspect", "user/lama")[0] == 0 and hub.requests == []


def test_a_card_says_what_a_model_came_from(hub, zoo, tmp_path):
    """The repository, its commit, the relation, the versions that load it, and one count of parameters."""
    from huggingface_hub import ModelCard

    from modeling_zoo import ZooForCausalLM

    sha = hub.repositories["user/llama"].find("main")
    assert zoo("convert", "user/llama", tmp_path / "zoo")[0] == 0
    card = ModelCard.load(tmp_path / "zoo" / "README.md")
    assert (card.data.base_model, card.data.base_model_relation) == ("user/llama", "quantized")
    assert f"`user/llama` at commit `{sha}`" in card.text and "transformers ≥ 5.17" in card.text
    model = ZooForCausalLM.from_pretrained(tmp_path / "zoo")
    assert card.text.count(f"{model.num_parameters():,}") == 1
    # Trained and pushed, it descends from the same repository; its commit is another's.
    model.push_to_hub("user/tuned")
    tuned = ModelCard(hub.files("user/tuned")["README.md"].decode())
    assert (tuned.data.base_model, tuned.data.base_model_relation) == ("user/llama", "finetune")
    assert sha not in tuned.text
