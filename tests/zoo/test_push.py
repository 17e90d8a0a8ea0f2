"""Onto the Hub and back: models, tokenizers, adapters and configs through the real client, and `zoo push`."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_checks import assert_same_tensors, tensors_of
from hub_fixtures import TOKENS, fresh_process, point_at, use_token
from hub_server import Hub
from places import ROOT, STORIES
from random_models import randomize
from transformers import AutoTokenizer
from wrapped_models import WRAPPED, save_wrapped

import conversion
from modeling_zoo import ZooConfig, ZooForCausalLM
from modeling_zoo.export import AUTO_MAP, FILES

LOADER = ROOT / "examples" / "load_remote.py"
CARD = """---
license: mit
license_name: stories
base_model: karpathy/tinyllamas
language:
- en
---
# The original
"""
TINY = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The demo's checkpoint with a card of its own, as a zoo folder."""
    source = tmp_path_factory.mktemp("push") / "source"
    shutil.copytree(STORIES, source)
    (source / "README.md").write_text(CARD)
    conversion.convert(source, source.parent / "zoo", progress=False)
    return source.parent / "zoo"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub(TOKENS) as hub:
        point_at(monkeypatch, hub, tmp_path / "cache")
        yield hub
        from huggingface_hub.utils import close_session

        close_session()


def make_model(**flags):
    model = ZooForCausalLM(ZooConfig(**{**TINY, **flags}))
    randomize(model)
    model.generation_config.eos_token_id = None
    return model.eval()


def what_loads(hub, tmp_path, name, *revision, prompt="Once upon a time", **process):
    """The answer of examples/load_remote.py for a repository, on a machine that has only transformers."""
    home, answer = tmp_path / "home", tmp_path / "answer.json"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    done = fresh_process(hub, home, [LOADER, name, prompt, 12, answer, *revision], **process)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(answer.read_text())


def expected_text(folder, prompt="Once upon a time"):
    model, tokenizer = ZooForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=12, do_sample=False)
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


# -- push_to_hub ----------------------------------------------------------------------------------------------------


def test_a_pushed_model_and_tokenizer_load_where_zoo_does_not_exist(hub, converted, tmp_path):
    ZooForCausalLM.from_pretrained(converted).push_to_hub("user/stories")
    AutoTokenizer.from_pretrained(converted).push_to_hub("user/stories")
    files = hub.files("user/stories")
    assert {*FILES, "tokenizer.json", "generation_config.json", "README.md", "model.safetensors"} <= {*files}
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP
    answer = what_loads(hub, tmp_path, "user/stories")
    assert answer["text"] == expected_text(converted) and answer["class"].startswith("transformers_modules.user.")


def test_a_cold_load_asks_the_hub_twelve_times_at_most(hub, tmp_path):
    make_model().push_to_hub("user/tiny")
    load = "AutoModelForCausalLM.from_pretrained('user/tiny', trust_remote_code=True)"
    hub.requests.clear()
    done = fresh_process(hub, tmp_path, ["-c", f"from transformers import AutoModelForCausalLM; {load}"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(hub.requests) <= 12, "\n".join(f"{m} {p}" for m, p in hub.requests)


def test_its_card_is_zoos_own_with_the_licence_of_the_original(hub, converted):
    ZooForCausalLM.from_pretrained(converted).push_to_hub("user/stories")
    files = hub.files("user/stories")
    card = files["README.md"].decode()
    for part in ("license: mit", "base_model: karpathy/tinyllamas", "- zoo", "| `hidden_size` | `64` |", "## Serve"):
        assert part in card
    assert files["architecture.svg"].startswith(b"<svg")
    assert "rearranged without loss" not in card, "it may have been trained since"


def test_what_waits_for_the_way_back_goes_along(hub, tmp_path):
    save_wrapped(WRAPPED["gemma3"], tmp_path / "source")
    conversion.convert(tmp_path / "source", tmp_path / "zoo", progress=False)
    ZooForCausalLM.from_pretrained(tmp_path / "zoo").push_to_hub("user/sees")
    assert {"source/manifest.json", "source/tensors.safetensors"} <= {*hub.files("user/sees")}
    conversion.convert("user/sees", tmp_path / "back", to="gemma3", progress=False)
    assert_same_tensors(tensors_of(tmp_path / "back"), tensors_of(tmp_path / "source"))
    # Loaded from the Hub, where only the model is fetched, and saved: the repository is where the rest is.
    ZooForCausalLM.from_pretrained("user/sees", revision="main").save_pretrained(tmp_path / "tuned")
    shutil.rmtree(tmp_path / "tuned" / "source", ignore_errors=True)
    conversion.convert(tmp_path / "tuned", tmp_path / "again", to="gemma3", source="user/sees", progress=False)
    assert_same_tensors(tensors_of(tmp_path / "again"), tensors_of(tmp_path / "source"))


def test_a_card_that_stands_there_already_stays(hub):
    model = make_model()
    model.push_to_hub("user/tiny")
    from huggingface_hub import HfApi

    HfApi().upload_file(path_or_fileobj=b"---\nlicense: mit\n---\nwritten by hand", path_in_repo="README.md",
                        repo_id="user/tiny")  # fmt: skip
    model.push_to_hub("user/tiny")
    assert b"written by hand" in hub.files("user/tiny")["README.md"]


def test_large_files_go_in_parts_and_only_once(hub):
    model = make_model(vocab_size=3001)
    model.push_to_hub("user/tiny")
    parts = [path for method, path in hub.requests if method == "PUT"]
    assert len(parts) > 3 and parts[0].startswith("/storage/")
    hub.requests.clear()
    model.push_to_hub("user/tiny", revision="again")
    assert not [path for method, path in hub.requests if method == "PUT"]
    stored = hub.files("user/tiny", "again")["model.safetensors"]
    assert stored == hub.files("user/tiny")["model.safetensors"]


def test_a_config_alone(hub, tmp_path):
    ZooConfig(**TINY, num_key_value_heads=2).push_to_hub("user/config")
    files = hub.files("user/config")
    assert {"config.json", "configuration_zoo.py", "modeling_zoo.py", "README.md"} <= {*files}
    config = ZooConfig.from_pretrained("user/config")
    assert config.num_key_value_heads == 2 and config.hidden_size == 24


def test_an_adapter_finds_its_base_on_the_hub(hub, zoo, tmp_path):
    peft = pytest.importorskip("peft")
    make_model().push_to_hub("user/base")
    base = ZooForCausalLM.from_pretrained("user/base")
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    tokens = torch.randint(61, (1, 7))
    expected = model.eval()(tokens).logits
    model.push_to_hub("user/adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= {*hub.files("user/adapter")}
    again = peft.AutoPeftModelForCausalLM.from_pretrained("user/adapter").eval()
    torch.testing.assert_close(again(tokens).logits, expected)
    # PEFT's template goes through its own way; `zoo push` writes what there is to say.
    model.save_pretrained(tmp_path / "adapter")
    assert zoo("push", tmp_path / "adapter", "user/described")[0] == 0
    assert "# A LoRA for `user/base`" in hub.files("user/described")["README.md"].decode()


def test_a_private_model_needs_its_owners_token(hub, monkeypatch, tmp_path):
    make_model().push_to_hub("user/secret", private=True)
    assert hub.repositories["user/secret"].private
    ZooForCausalLM.from_pretrained("user/secret")
    for token in ("hf_of_guest", None):
        use_token(monkeypatch, token)
        with pytest.raises(OSError, match="user/secret"):
            ZooForCausalLM.from_pretrained("user/secret", cache_dir=tmp_path / str(token))


@pytest.mark.long
def test_a_pinned_revision_loads_its_own_weights_and_its_own_code(hub, converted, tmp_path):
    model = ZooForCausalLM.from_pretrained(converted)
    model.push_to_hub("user/stories")
    AutoTokenizer.from_pretrained(converted).push_to_hub("user/stories")
    first = hub.repositories["user/stories"].branches["main"]
    from huggingface_hub import CommitOperationAdd, HfApi

    code = hub.files("user/stories")["modeling_zoo.py"] + b"\nZooForCausalLM.marked = 'later'\n"
    code = code.replace(
        b"return MoeCausalLMOutputWithPast(", b"logits = -logits\n        return MoeCausalLMOutputWithPast("
    )
    HfApi().create_commit("user/stories", [CommitOperationAdd("modeling_zoo.py", code)], commit_message="other code")
    pinned = what_loads(hub, tmp_path, "user/stories", first)
    latest = what_loads(hub, tmp_path, "user/stories")
    assert pinned["text"] == expected_text(converted) != latest["text"]


# Set up by `make test-versions`: version -> (its Python, what comes first on its path).
OTHERS = {
    "5.17.0": (Path(sys.executable), ROOT / ".cache" / "transformers-5.17.0"),
    "5.19.0": (ROOT / ".venv-serving" / "bin" / "python", None),
}


@pytest.mark.long
@pytest.mark.parametrize("version", OTHERS)
def test_a_pushed_folder_loads_with_other_versions(version, hub, zoo, converted, tmp_path):
    python, first = OTHERS[version]
    if not (first or python).exists():
        pytest.skip("make test-versions sets it up")
    zoo("push", converted, "user/stories")
    code = f"import transformers; assert transformers.__version__ == {version!r}, transformers.__version__"
    path = [] if first is None else [first]
    assert fresh_process(hub, tmp_path, ["-c", code], path=path, python=python).returncode == 0
    answer = what_loads(hub, tmp_path, "user/stories", path=path, python=python)
    assert answer["text"] == expected_text(converted)


@pytest.mark.long
def test_the_example_publishes_a_model_and_an_adapter(hub, converted, tmp_path):
    pytest.importorskip("peft")
    script = ROOT / "examples" / "publish.py"
    done = fresh_process(hub, tmp_path, [script, converted, "user/stories"], token="hf_of_user")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("transformers_modules.user.stories.") and expected_text(converted) in done.stdout
    files = {*hub.files("user/stories")}
    assert {*FILES, "model.safetensors", "tokenizer.json", "README.md"} <= files
    assert "adapter_model.safetensors" in hub.files("user/stories-lora")


# -- zoo push -------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_command_pushes_a_folder_that_loads_anywhere(hub, zoo, converted, tmp_path):
    code, out, err = zoo("push", converted, "user/stories", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert {file["path"] for file in report["files"]} == {*hub.files("user/stories")}
    assert report["commit"] == hub.repositories["user/stories"].branches["main"]
    for name, content in hub.files("user/stories").items():
        assert content == (converted / name).read_bytes(), name
    assert what_loads(hub, tmp_path, "user/stories", report["commit"])["text"] == expected_text(converted)


def test_a_dry_run_lists_what_would_go_and_asks_nobody(hub, zoo, converted):
    code, out, _ = zoo("push", converted, "user/stories", "--dry-run")
    assert code == 0 and "nothing was sent" in out and hub.requests == []
    for name in ("config.json", "modeling_zoo.py", "model.safetensors", "tokenizer.json", "source/manifest.json"):
        assert name in out
    report = json.loads(zoo("push", converted, "user/stories", "--dry-run", "--json")[1])
    assert report["bytes"] == sum(path.stat().st_size for path in converted.rglob("*") if path.is_file())


def test_leftovers_of_training_and_hidden_files_stay_at_home(zoo, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    for name in (
        ".env",
        "optimizer.pt",
        "checkpoint-5/model.safetensors",
        "__pycache__/x.pyc",
        "runs/a",
        "rng_state_0.pth",
    ):
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_text("secret")
    report = json.loads(zoo("push", tmp_path / "model", "user/tiny", "--dry-run", "--json")[1])
    names = {file["path"] for file in report["files"]}
    expected = {*FILES, "config.json", "generation_config.json", "model.safetensors"}
    assert names == expected | {"README.md", "architecture.svg"}
    assert report["generated"] == ["README.md", "architecture.svg"]
    assert not (tmp_path / "model" / "README.md").exists()


def test_a_branch_and_a_private_repository(hub, zoo, converted):
    assert zoo("push", converted, "user/stories", "--private", "--revision", "v2")[0] == 0
    repository = hub.repositories["user/stories"]
    assert repository.private and hub.files("user/stories", "main") == {}
    assert "model.safetensors" in hub.files("user/stories", "v2")
    assert zoo("push", converted, "user/stories")[0] == 0 and repository.private


def test_a_public_repository_is_no_private_one(hub, zoo, converted):
    zoo("push", converted, "user/stories")
    before = dict(hub.repositories["user/stories"].branches)
    code, _, err = zoo("push", converted, "user/stories", "--private", "--revision", "other")
    assert code == 1 and "exists and is public" in err and hub.repositories["user/stories"].branches == before


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("method", "pattern", "answer", "said"),
    [
        ("POST", "repos/create", 401, "HF_TOKEN"),
        ("POST", "repos/create", 403, "may not write to user/stories"),
        ("POST", "/commit/", 404, "the Hub has no user/stories"),
        ("POST", "/preupload/", 503, "failed with status 503"),
        ("POST", "/commit/", 500, "failed with status 500"),
        ("POST", "/commit/", "drop", "connection to the Hub broke"),
        ("POST", "objects/batch", "drop", "connection to the Hub broke"),
        ("PUT", "/storage/", 500, "failed with status 500"),
        ("POST", "/commit/", 413, "status 413"),
    ],
)
def test_a_failing_hub_is_one_sentence_and_the_next_try_works(hub, zoo, converted, method, pattern, answer, said):
    hub.fail(method, pattern, answer, times=6)
    code, out, err = zoo("push", converted, "user/stories")
    assert code == 1 and said in err and out == ""
    own = [line for line in err.splitlines() if line.startswith("zoo: ")]
    assert len(own) == 1 and "Traceback" not in err
    hub.faults.clear()
    assert zoo("push", converted, "user/stories")[0] == 0
    assert hub.files("user/stories")["model.safetensors"] == (converted / "model.safetensors").read_bytes()


def test_a_hiccup_of_the_storage_is_not_even_seen(hub, zoo, converted):
    hub.fail("PUT", "/storage/", 503)
    hub.fail("PUT", "/storage/", "drop")
    assert zoo("push", converted, "user/stories", "--json")[0] == 0
    assert hub.files("user/stories")["model.safetensors"] == (converted / "model.safetensors").read_bytes()


def test_a_token_nobody_knows(hub, zoo, converted, monkeypatch):
    for token in ("hf_of_nobody", None):
        use_token(monkeypatch, token)
        code, _, err = zoo("push", converted, "user/stories")
        assert code == 1 and "HF_TOKEN" in err and err.count("\n") == 1


def test_another_users_namespace(hub, zoo, converted):
    code, _, err = zoo("push", converted, "guest/stories")
    assert code == 1 and "may not write to guest/stories" in err


def test_offline_is_said(hub, zoo, converted, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = zoo("push", converted, "user/stories")
    assert code == 1 and "HF_HUB_OFFLINE" in err and err.count("\n") == 1


@pytest.mark.parametrize("repository", ["stories", "a/b/c", "user/..", "user/na me"])
def test_a_name_that_is_no_repository(zoo, converted, repository):
    code, _, err = zoo("push", converted, repository, "--dry-run")
    assert code == 1 and repository in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"model_type": "llama", "auto_map": True}),
        ("config.json", {"model_type": "zoo", "auto_map": ["x"]}),
        ("model.safetensors.index.json", {"weight_map": [1]}),
        ("model.safetensors.index.json", {"weight_map": {"a": None}}),
    ],
)
def test_wrong_kinds_in_files_are_one_sentence(zoo, tmp_path, name, content):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).write_text(json.dumps(content))
    code, _, err = zoo("push", tmp_path, "user/stories", "--dry-run")
    assert code == 1 and name in err and err.count("\n") == 1 and "unexpected" not in err


def test_folders_nobody_could_load(zoo, converted, tmp_path):
    broken = Path(shutil.copytree(converted, tmp_path / "broken"))
    (broken / "configuration_zoo.py").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    for folder, said in (
        (tmp_path / "absent", "is not a folder"),
        (tmp_path / "empty", "there is nothing to push"),
        (broken, "lacks configuration_zoo.py"),
        (tmp_path / "shards", "lacks model-00001-of-00002.safetensors"),
    ):
        code, _, err = zoo("push", folder, "user/stories", "--dry-run")
        assert code == 1 and said in err and err.count("\n") == 1
