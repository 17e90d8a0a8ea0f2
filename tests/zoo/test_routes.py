"""What `zoo verify` says about experts: the choices of transformers' own classes and of zoo's, and where they part."""

import json
import sys

import pytest
import torch
from random_models import build, their_class_config
from safetensors.torch import load_file, save_file

from conversion import convert, family_of, load
from zoo.cli.main import main
from zoo.cli.routes import agreement, recorded_routes

# Routers that give numbers, that give weights with zeros, that give logits alone; layers counted differently.
FAMILIES = ("dbrx", "deepseek_v3", "gpt_oss", "hunyuan_v1_moe", "llama4_text", "longcat_flash", "mixtral", "phimoe")


def routes_of(model, tokens):
    with torch.no_grad(), recorded_routes(model, tokens.numel()) as routes:
        model(tokens)
    return routes


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_of_router_is_read(name, tmp_path):
    family = family_of(name)
    theirs = build(their_class_config(name, family, family.tiny[0]), family)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    tokens = torch.randint(1, 90, (2, 11))
    found, expected = routes_of(ours, tokens), routes_of(theirs, tokens)
    sparse = [index for index, word in enumerate(ours.config.mlp_layer_types) if word == "sparse"]
    assert list(found) == sparse
    for layer, chosen in found.items():
        assert chosen.shape == (22, ours.config.per_layer_config[layer].num_experts_per_tok)
        assert chosen.unique().numel() > chosen.shape[1], "every token goes the same way: nothing is compared"
    assert agreement(expected, found) == {"agreement": 1.0, "by_layer": {f"layer {index}": 1.0 for index in sparse}}


def test_shares_by_hand():
    one = {1: torch.tensor([[0, 2], [1, 3], [0, 1], [2, 3]]), 3: torch.tensor([[0, 2], [1, 3], [0, 1], [2, 3]])}
    other = {1: one[1], 4: torch.tensor([[0, 2], [1, 2], [0, 3], [1, 3]])}
    assert agreement(one, other) == {"agreement": 0.625, "by_layer": {"layer 1": 1.0, "layer 4": 0.25}}
    fewer = {1: one[1], 4: torch.tensor([[0], [1], [0], [1]])}
    assert agreement(one, fewer) == {"agreement": None, "by_layer": {"layer 1": 1.0, "layer 4": None}}
    assert agreement({}, one) == {"agreement": None, "by_layer": {}}
    assert agreement({}, {}) is None


@pytest.fixture
def verify(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["zoo", "verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capsys.readouterr().out

    return run


def test_verify_reports_where_the_routing_differs(verify, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    family = family_of("deepseek_v3")
    build(their_class_config("deepseek_v3", family, family.tiny[0]), family).save_pretrained(source)
    convert(source, target, progress=False)
    code, out = verify(source, target, "--json", "--new-tokens", 2)
    report = json.loads(out)
    assert code == 0 and report["routing"]["agreement"] == 1.0
    layers = list(report["routing"]["by_layer"])
    assert "experts 100.0% of the choices equal" in verify(source, target, "--new-tokens", 0)[1]

    # The last router prefers others: the layers before it still agree.
    last = layers[-1].removeprefix("layer ")
    tensors = load_file(target / "model.safetensors")
    tensors[f"model.layers.{last}.mlp.gate.weight"] *= -1
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    code, out = verify(source, target, "--json", "--new-tokens", 0)
    shares = json.loads(out)["routing"]["by_layer"]
    assert code == 1 and len(shares) > 1
    assert [shares[name] for name in layers[:-1]] == [1.0] * (len(layers) - 1)
    assert shares[layers[-1]] < 0.5
    assert json.loads(out)["routing"]["agreement"] == pytest.approx(sum(shares.values()) / len(shares))
