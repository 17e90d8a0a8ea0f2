"""The bundled models and their tokenizer in JavaScript are those of PyTorch and tokenizers."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_zoo import ZooForCausalLM
from zoo.site.explorer import STATIC, exported
from zoo.site.explorer.data import ROUTED, STORIES, stories

DRIVER = Path(__file__).parents[1] / "support" / "explorer_stories.mjs"
SENTENCES = [
    "Once upon a time, there was a little girl named Lily. She",
    "The  dog   ran",
    "Ünïcödé ☃ 🐻‍❄️ привет",
    "a",
]
ODD = [
    "", " ", "  ", "   leading", "trailing  ", "\n", "two\nlines\n\n", "\ttab\u00a0space\u3000wide", "<s>",
    "</s> and <unk>", "a<s>b </s>", "<s", "don't!?…", "日本語とमराठी", "e\u0301 é", "\u200b\ufeff", "▁ ▁▁",
    "1234567890", "AAAAaaaa", "🇩🇪👩‍👩‍👧",
    "\x00\x01\x7f", "\\n \"quoted\" 'single'", "the the the", "Lily and Tom went to the park. They were very happy.",
]  # fmt: skip

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The scripts and the model that they run."""
    made = tmp_path_factory.mktemp("stories")
    shutil.copytree(STATIC, made, dirs_exist_ok=True)
    (made / "stories.js").write_text(exported(stories()), encoding="utf-8")
    (made / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    return made


def ask(folder, texts=(), spelled=(), ids=(), greedy=("Once", 0), name="stories260K"):
    question = {
        "name": name,
        "texts": texts,
        "spelled": spelled,
        "ids": ids,
        "greedy": {"text": greedy[0], "count": greedy[1]},
    }
    command = ["node", str(DRIVER), str(folder)]
    done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def close(mine, expected, tolerance):
    torch.testing.assert_close(torch.tensor(mine, dtype=torch.float32), expected, rtol=0, atol=tolerance)


def random_texts(count):
    rng = random.Random(7)
    letters = [*"abcdehilmnorstu THEL.,!?'\n  ", "▁", "é", "ß", "☃", "🐻", "<s>", "</s>", "Lily", " the ", "\u0301"]
    return ["".join(rng.choices(letters, k=rng.randrange(1, 40))) for _ in range(count)]


CLASSES = {"stories260K": (AutoModelForCausalLM, STORIES), "routed": (ZooForCausalLM, ROUTED)}


@needs_node
@pytest.mark.parametrize("name", CLASSES)
def test_logits_are_those_of_pytorch(folder, name):
    model_class, place = CLASSES[name]
    model = model_class.from_pretrained(place, attn_implementation="eager", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    answer = ask(folder, SENTENCES, greedy=(SENTENCES[0], 40), name=name)
    for text, mine in zip(SENTENCES, answer["found"], strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        assert mine["ids"] == inputs.input_ids[0].tolist(), text
        with torch.no_grad():
            output = model(**inputs, output_attentions=True, output_hidden_states=True)
        torch.testing.assert_close(
            torch.tensor(mine["logits"], dtype=torch.float32), output.logits[0], rtol=0, atol=1e-4
        )
        for place, layers in enumerate(mine["attention"]):
            expected = torch.stack([weights[0, :, place, : place + 1] for weights in output.attentions])
            close(layers, expected, 1e-5)
        # The last of transformers' hidden states is behind the norm.
        for depth, stream in enumerate(output.hidden_states[:-1]):
            with torch.no_grad():
                lens = model.lm_head(model.model.norm(stream))[0]
            torch.testing.assert_close(
                torch.tensor([one[depth] for one in mine["lens"]], dtype=torch.float32), lens, rtol=0, atol=1e-4
            )
    inputs = tokenizer(SENTENCES[0], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert answer["written"] == ids.tolist()


@needs_node
def test_gates_and_routes_are_those_of_pytorch(folder):
    model = ZooForCausalLM.from_pretrained(ROUTED, dtype=torch.float32).eval()
    tokenizer, seen = AutoTokenizer.from_pretrained(STORIES), {"open": [], "routed": []}
    for layer in model.model.layers:
        gate, router = layer.self_attn.output_gate.g_proj, layer.mlp.gate
        gate.register_forward_hook(lambda module, given, out: seen["open"].append(out[0].sigmoid()))
        router.register_forward_hook(
            lambda module, given, out: seen["routed"].append(torch.zeros(len(out[1]), 8).scatter(1, out[2], out[1]))
        )
    for text, mine in zip(SENTENCES, ask(folder, SENTENCES, name="routed")["found"], strict=True):
        seen["open"].clear(), seen["routed"].clear()
        with torch.no_grad():
            model(**tokenizer(text, return_tensors="pt"))
        for what, expected in seen.items():
            close(mine[what], torch.stack(expected, dim=1), 1e-5)
        assert all(sum(share > 0 for share in layer) == 2 for step in mine["routed"] for layer in step)


@needs_node
def test_ids_are_those_of_the_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    texts = [*ODD, *random_texts(300)]
    expected = [tokenizer(text).input_ids for text in texts]
    answer = ask(folder, spelled=texts, ids=expected)
    for text, ids, mine in zip(texts, expected, answer["spelled"], strict=True):
        assert mine == ids, repr(text)
    for ids, mine in zip(expected, answer["decoded"], strict=True):
        assert mine == tokenizer.decode(ids, skip_special_tokens=True), ids
