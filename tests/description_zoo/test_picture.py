"""The picture: norms where the model has them, a word for whatever a layer has, every topology drawn."""

from xml.etree import ElementTree

import pytest
from combinations import EXPERTS, ROWS, SIZES, STATES
from samples import only

from configuration_zoo import ZooConfig
from configuration_zoo.vocabulary import BLOCK_TYPES
from description_zoo.measure import body_of, empty_model, measure
from description_zoo.picture import TOPOLOGIES, architecture_svg
from modeling_zoo.block_gated_norm import GatedNorm
from modeling_zoo.norms import Norm

SVG = "{http://www.w3.org/2000/svg}"


def drawn(config):
    picture = ElementTree.fromstring(architecture_svg(measure(config)))
    return picture, [element.text for element in picture.iter(f"{SVG}text")]


def of_kind(picture, kind):
    return [element for element in picture.iter(f"{SVG}rect") if element.get("class") == f"zoo-{kind}"]


def test_every_topology_is_drawn():
    assert set(TOPOLOGIES) == set(BLOCK_TYPES)


@pytest.mark.parametrize("block", BLOCK_TYPES)
def test_a_picture_has_the_norms_of_the_model(block):
    flags = {"block_type": block, "num_hidden_layers": 2}
    if block == "shared_block":
        flags |= STATES | {"layer_types": ["hybrid"] * 2, "linear_attention_type": "mamba2"}
    config = ZooConfig(**{**SIZES, **flags})
    picture, _ = drawn(config)
    layer = body_of(empty_model(config)).layers[0]
    norms = [name for name, module in layer.named_children() if isinstance(module, Norm | GatedNorm)]
    # Two equal layers are drawn once; the last norm is the model's. The first layer has no depth to read over.
    times = 2 if block == "attention_residual" else 1
    assert len(of_kind(picture, "norm")) == times * len(norms) + 1
    has = {"mixer": block != "mlp_only", "mlp": block not in ("mixer_only", "shared_block")}
    assert {kind: len(of_kind(picture, kind)) for kind in has} == {kind: times * there for kind, there in has.items()}


def test_a_picture_says_what_a_layer_has():
    more = {
        "no_rope_layers": [1, 0, 1],
        "qk_norm": "rms_norm",
        "attn_output_gate": "headwise",
        "attention_sinks": "all",
    }
    picture, words = drawn(ZooConfig(**{**SIZES, **EXPERTS, **more, "attn_logit_softcapping": 20.0}))
    for word in ("RoPE 10000", "NoPE", "QK rms norm", "gate per head", "sinks", "cap 20.0", "q 72", "k 24", "router →"):
        assert word in words
    assert len(of_kind(picture, "on")) == 2 * 2 and len(of_kind(picture, "off")) == 2 * 3


@pytest.mark.parametrize("group", only(["mlp"], [name for name in ROWS if name != "stray"]))
def test_nothing_is_drawn_outside(group):
    for flags in ROWS[group]:
        try:
            config = ZooConfig(**{**SIZES, **flags})
        except ValueError:
            continue
        picture, _ = drawn(config)
        width, height = (float(picture.get(side)) for side in ("width", "height"))
        for element in picture.iter(f"{SVG}rect"):
            x, y, across, down = (float(element.get(name)) for name in ("x", "y", "width", "height"))
            assert 0 <= x and 0 <= y and x + across <= width and y + down <= height
