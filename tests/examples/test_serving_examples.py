"""The scripts under examples/ that serve and evaluate, run as they stand there, against transformers' own classes."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from places import ROOT, STORIES
from transformers import AutoTokenizer, LlamaForCausalLM, pipeline

PROMPT = "Once upon a time"
needs = {name: pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")
         for name in ("fastapi", "lm_eval")}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from conversion import convert

    target = tmp_path_factory.mktemp("serving") / "stories"
    convert(STORIES, target, progress=False)
    return target


def continued(prompt, new_tokens):
    """What the original says, by transformers' own class."""
    tokenizer, model = AutoTokenizer.from_pretrained(STORIES), LlamaForCausalLM.from_pretrained(STORIES)
    tokens = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=new_tokens, do_sample=False)
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def run(script, *arguments, cwd):
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_pipeline_tells_the_original_story(folder):
    tell = pipeline("text-generation", str(folder), trust_remote_code=True)
    assert tell(PROMPT, max_new_tokens=24, do_sample=False)[0]["generated_text"] == continued(PROMPT, 24)


@pytest.mark.long
def test_continuous_batching_answers_each_request(folder, tmp_path):
    prompts = [PROMPT, "One day, a little boy"]
    shown = run("batching.py", folder, *prompts, cwd=tmp_path)
    assert shown.strip() == "\n".join(continued(prompt, 24) for prompt in prompts)


@pytest.mark.long
def test_an_exported_graph_takes_any_length(folder, tmp_path):
    shown = run("export_graph.py", folder, tmp_path / "graph.pt2", cwd=tmp_path)
    assert re.match(r"\d+ nodes, another length differs by \S+", shown) and (tmp_path / "graph.pt2").is_file()


@pytest.mark.serving
@needs["lm_eval"]
def test_lm_eval_gives_the_likelihoods_of_the_original(folder, tmp_path):
    sys.path.insert(0, str(ROOT / "examples"))
    from evaluate import QUESTIONS

    shown = json.loads(run("evaluate.py", folder, cwd=tmp_path).strip().splitlines()[-1])
    tokenizer, model = AutoTokenizer.from_pretrained(STORIES), LlamaForCausalLM.from_pretrained(STORIES)
    right = 0
    for (prompt, choices, answer), found in zip(QUESTIONS, shown["log_likelihoods"], strict=True):
        expected = []
        for choice in choices:
            start, whole = tokenizer(prompt).input_ids, tokenizer(prompt + choice).input_ids
            with torch.no_grad():
                logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            expected.append(sum(logs[i - 1, whole[i]].item() for i in range(len(start), len(whole))))
        assert found == pytest.approx(expected, abs=2e-3)
        right += expected.index(max(expected)) == answer
    assert shown["acc"] == right / len(QUESTIONS)


@contextmanager
def served(folder, tmp_path):
    """The address of a server that examples/serve.py has started, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), str(folder), "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.serving
@needs["fastapi"]
def test_transformers_serve_answers_over_http(folder, tmp_path):
    request = {"model": str(folder), "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
    with served(folder, tmp_path) as (address, server):
        answer = json.loads(ask(f"{address}/v1/completions", request, server))
    assert PROMPT + answer["choices"][0]["text"] == continued(PROMPT, 16), (tmp_path / "log").read_text()[-2000:]


@pytest.mark.serving
@needs["fastapi"]
def test_transformers_chat_talks_to_it(folder, tmp_path):
    """A line of the user's, no more after the limit, the end; the folder's tokenizer has to have a chat template."""
    talking = Path(shutil.copytree(folder, tmp_path / "talking"))
    (talking / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    options = ["max_new_tokens=16", "do_sample=False"]
    with served(talking, tmp_path) as (address, server):
        ask(f"{address}/v1/completions", {"model": str(talking), "prompt": PROMPT, "max_tokens": 1}, server)
        command = [sys.executable, "-m", "transformers.cli.transformers", "chat", str(talking), address, *options]
        client = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {"COLUMNS": "200"}
        lines = f"{PROMPT}\nn\n!exit\n"
        done = subprocess.run(
            command, cwd=tmp_path, env=client, input=lines, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr[-3000:]
    told = " ".join(continued(PROMPT, 16).removeprefix(PROMPT).split())
    assert told in " ".join(done.stdout.split()), done.stdout + (tmp_path / "log").read_text()[-2000:]


def ask(url, request, server):
    """Posts until the server is there."""
    data = json.dumps(request).encode()
    for _ in range(120):
        assert server.poll() is None, "the server ended"
        try:
            message = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            return urllib.request.urlopen(message, timeout=60).read()
        except (ConnectionError, urllib.error.URLError) as error:
            if isinstance(error, urllib.error.HTTPError):
                raise AssertionError(error.read().decode()) from error
            time.sleep(1)
    raise AssertionError("the server never answered")
