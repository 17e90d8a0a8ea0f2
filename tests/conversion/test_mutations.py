"""Whatever is wrong with a folder, every command says it in one sentence or does its work: no traceback, no hang,
nothing changed that it was not asked to change, nothing left behind, nothing followed out of the folder."""

import json
import re
import shutil
import signal
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import MUTATIONS, snapshot
from places import STORIES
from random_models import randomize
from transformers import LlamaConfig, LlamaForCausalLM

SECRET = "a-secret-of-another-folder"
SECONDS = 60
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
COMMANDS = {
    "inspect": lambda source, target: ("inspect", source),
    "inspect --json": lambda source, target: ("inspect", source, "--json"),
    "convert": lambda source, target: ("convert", source, target, "--no-progress"),
    "convert --to": lambda source, target: ("convert", source, target, "--to", "llama", "--no-progress"),
    "generate": lambda source, target: ("generate", source, "--prompt", "One day", "--max-new-tokens", 2),
    "generate --chat": lambda source, target: ("generate", source, "--prompt", "Hi", "--chat", "--max-new-tokens", 2),
    "verify": lambda source, target: ("verify", source, source, "--tokens", 3, "--new-tokens", 1, "--prompt", "Day"),
    "push": lambda source, target: ("push", source, "a/b", "--dry-run"),
}
OUTCOMES = Counter()


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A tiny foreign folder and the same as zoo, each with all that a folder has."""
    import conversion

    root = tmp_path_factory.mktemp("originals")
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=512, num_hidden_layers=2, max_position_embeddings=64, **sizes))
    randomize(model)
    foreign = root / "foreign"
    model.save_pretrained(foreign)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STORIES / name, foreign)
    (foreign / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (foreign / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\n# A model\n")
    (foreign / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "do_sample": True, "top_k": 5}))
    (foreign / "LICENSE").write_text("MIT\n")
    conversion.convert(foreign, root / "zoo", progress=False)
    return root


class Hang(BaseException):
    """A command that takes far longer than any of these may."""


def stop(*_):
    raise Hang


def check(zoo, originals, room, command, kind, choose):
    """One broken folder, one command."""
    shutil.rmtree(room, ignore_errors=True)
    (room / "outside").mkdir(parents=True)
    (room / "outside" / "secret.json").write_text(json.dumps({"model_type": "llama", "secret": SECRET}))
    source, target = room / "source", room / "target"
    shutil.copytree(originals / kind, source)
    done = [MUTATIONS[choose(len(MUTATIONS))](source, choose, room / "outside") for _ in range(1 + choose(2))]
    before = snapshot(room)
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        code, out, err = zoo(*COMMANDS[command](source, target))
    except Hang:
        pytest.fail(f"zoo {command} on a {kind} folder with {done} goes on and on")
    finally:
        signal.alarm(0)
    said = f"zoo {command} on a {kind} folder with {done}: exit code {code}, {err!r}"
    after = snapshot(room)
    made = {name for name in after if name == "target" or name.startswith("target/")}
    assert {name: after[name] for name in after.keys() - made} == before, said
    assert not CONTROL.search(out) and not CONTROL.search(err), f"{said} {out!r}"
    assert SECRET not in out + err and not any(SECRET.encode() in (after[name][2] or b"") for name in made), said
    if command != "verify" or err:
        assert (code == 0) == ("zoo: " not in err), said
    if code and err:
        # A library may have said something before; the last line is zoo's one sentence.
        *before_it, last = [line for line in err.strip().split("\n") if line]
        assert re.match("zoo: (?!unexpected [A-Z])", last), said
        assert not any(line.startswith(("zoo: ", "Traceback")) for line in before_it), said
        assert len(last) < 2500 and "0x7f" not in last, said
        assert made == set(), said
    if command == "convert" and made:
        card = after["target/README.md"][2].decode()
        assert "<script>" not in card and "# HEAD" not in card and len(card) < 50_000, said
    OUTCOMES[command, "worked" if code == 0 else "a sentence"] += 1


def run(zoo, originals, room, command, kind, examples, seed=0):
    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.randoms(use_true_random=False))
    def broken(random):
        check(zoo, originals, room, command, kind, random.randrange)

    torch.manual_seed(seed)
    broken()


@pytest.fixture(scope="module", autouse=True)
def figures(request):
    yield
    total = Counter()
    for (command, outcome), count in sorted(OUTCOMES.items()):
        total[outcome] += count
        print(f"{command:<16} {outcome:<11} {count}")
    print(f"mutated folders: {dict(total)}")


@pytest.mark.parametrize("kind", ["foreign", "zoo"])
@pytest.mark.parametrize("command", COMMANDS)
def test_one_sentence_or_success(zoo, originals, tmp_path, command, kind):
    run(zoo, originals, tmp_path / "room", command, kind, examples=5)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["foreign", "zoo"])
@pytest.mark.parametrize("command", COMMANDS)
def test_one_sentence_or_success_in_many_more(zoo, originals, tmp_path, command, kind):
    run(zoo, originals, tmp_path / "room", command, kind, examples=150)
