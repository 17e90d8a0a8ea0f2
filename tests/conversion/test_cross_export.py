"""A model goes out to every family that can say it, not only to the one it came from: each computes the same."""

import pytest
import torch
from random_models import is_here, randomize, their_class_config
from samples import only
from transformers import AutoModelForCausalLM

from conversion import ConversionError, convert, export_config, family_of, import_config, known_families
from modeling_zoo import ZooForCausalLM

# Family and variant -> families that must be among those that take it.
SOURCES = {
    ("llama", 0): {"mistral", "ministral", "ministral3", "granite", "smollm3", "cwm", "internlm3", "seed_oss"},
    ("llama", 1): {"granite", "hyperclovax", "iquestcoder"},
    ("mistral", 0): {"ministral", "cwm", "smollm3"},
    ("gemma", 0): {"vaultgemma"},
    ("hyperclovax", 1): {"granite"},
}


def from_nowhere(name, index):
    """A zoo model that looks like a variant of a family and came from no checkpoint."""
    family = family_of(name)
    config = import_config(their_class_config(name, family, family.tiny[index]).to_dict())
    config.source_config = None
    model = ZooForCausalLM(config).eval()
    randomize(model)
    model.tie_weights()
    return model


def takes(config, target):
    try:
        export_config(config, target)
    except ConversionError:
        return False
    return True


@pytest.mark.parametrize("source", only([("mistral", 0)], SOURCES), ids=lambda source: f"{source[0]}-{source[1]}")
def test_every_family_that_takes_a_model_computes_the_same(source, tmp_path):
    name, index = source
    model = from_nowhere(name, index)
    model.save_pretrained(tmp_path / "zoo")
    # `reads` and `section`: checkpoints that hold more than transformers' text model of that type.
    targets = [t for t in known_families() if not (family_of(t).reads or family_of(t).section)]
    taken = {target for target in targets if takes(model.config, target)}
    assert {target for target in {name} | SOURCES[name, index] if is_here(target)} <= taken
    tokens = torch.randint(1, model.config.vocab_size, (2, 13))
    with torch.no_grad():
        expected = model(tokens).logits
    for target in sorted(taken):
        convert(tmp_path / "zoo", tmp_path / target, to=target, progress=False)
        theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / target, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), target
        with torch.no_grad():
            found = theirs(tokens).logits
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max(), target


def test_what_a_family_cannot_express_is_named_by_field():
    """Also where the field is a key of a dict of settings, and where the family's class would have nothing to build."""
    config = from_nowhere("llama", 0).config
    with pytest.raises(ConversionError, match=r"precision\.norm='cast_then_scale' \(it would become 'native'\)"):
        export_config(config, "gpt2")
    for name in ("granitemoe", "granitemoeshared"):
        with pytest.raises(ConversionError, match=f"{name} cannot express this model: num_local_experts=None"):
            export_config(config, name)
