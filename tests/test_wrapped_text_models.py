"""Checkpoints that hold a vision tower around a text model: the text model comes out, the whole goes back."""

import json

import pytest
import torch
import transformers
from random_models import randomize
from safetensors.torch import load_file

from conversion import convert, load
from conversion.ministral3 import YARN
from conversion.rules_common import tiny

VISION = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
PIXTRAL = VISION | {"model_type": "pixtral"}
GEMMA = {"mm_tokens_per_image": 4, "image_token_index": 99, "boi_token_index": 97, "eoi_token_index": 98}
WRAPPED = {
    "gemma3": ("Gemma3", tiny(num_hidden_layers=6, sliding_window=5, query_pre_attn_scalar=7), VISION, GEMMA),
    "mistral3": ("Mistral3", tiny(model_type="mistral", sliding_window=5), PIXTRAL, {"tie_word_embeddings": False}),
    "mistral3-ministral3": (
        "Mistral3", tiny(model_type="ministral3", rope_parameters=YARN, tie_word_embeddings=True), PIXTRAL, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_text_of_a_wrapped_model(name, tmp_path):
    prefix, text, vision, more = WRAPPED[name]
    config = getattr(transformers, prefix + "Config")(
        text_config=text, vision_config=vision, attn_implementation="eager", **more
    )
    theirs = getattr(transformers, prefix + "ForConditionalGeneration")._from_config(config).eval()
    randomize(theirs)
    source, zoo, back = (tmp_path / folder for folder in ("source", "zoo", "back"))
    theirs.save_pretrained(source)

    tokens = torch.randint(1, 90, (2, 13))
    with torch.no_grad():
        expected, found = theirs(input_ids=tokens).logits, load(source)(tokens).logits
    assert expected.std() > 1e-3
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()

    convert(source, zoo, progress=False)
    convert(zoo, back, to=name.split("-")[0], progress=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, back))
    assert sorted(after) == sorted(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert json.loads((back / "config.json").read_text()) == json.loads((source / "config.json").read_text())
