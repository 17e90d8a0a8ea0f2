"""In bfloat16 the order of casts decides the last bit: equal to transformers' own class, not close to it."""

import pytest
import torch
from random_models import build, their_class_config

from conversion import family_of, load

# Each has an order of its own: norms that round before or after their weight, rotations in the activation dtype, with
# float32 angles or on float32 queries, embeddings whose scale is rounded first, capped scores and logits, scores of
# float32 queries, parallel branches added before the stream, norms per head that round twice.
FAMILIES = ("llama", "qwen3", "gemma2", "olmo2", "cohere", "gpt_neo", "gptj", "nemotron", "chameleon")
VARIANTS = [(name, index) for name in FAMILIES for index in range(len(family_of(name).tiny))]


def pair(name, index, folder):
    """transformers' model and zoo's, both loaded from one file of bfloat16, both with plain attention."""
    family = family_of(name)
    original = build(their_class_config(name, family, family.tiny[index]), family, torch.bfloat16)
    original.save_pretrained(folder)
    # Loaded, not cast: a cast would round the frequencies of the rotation, which every user has in float32.
    theirs, ours = type(original).from_pretrained(folder, attn_implementation="eager"), load(folder)
    ours.set_attn_implementation("eager")
    assert theirs.dtype == ours.dtype == torch.bfloat16
    return theirs, ours


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name, index", VARIANTS, ids=str)
def test_logits_are_equal_to_the_last_bit(name, index, tmp_path):
    theirs, ours = pair(name, index, tmp_path)
    tokens = torch.randint(1, theirs.config.vocab_size, (2, 17))
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    with torch.no_grad():
        expected, found = theirs(tokens, attention_mask=mask).logits, ours(tokens, attention_mask=mask).logits
    attended = mask.bool()
    assert expected.dtype == found.dtype == torch.bfloat16
    assert expected[attended].float().std() > 1e-2
    assert torch.equal(found[attended], expected[attended])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", FAMILIES)
def test_cached_steps_are_equal_to_the_last_bit(name, tmp_path):
    models = pair(name, 0, tmp_path)
    tokens = torch.randint(1, models[0].config.vocab_size, (2, 12))
    caches = [None, None]
    for chunk in tokens.split((7, 1, 1, 3), dim=1):
        with torch.no_grad():
            outputs = [model(chunk, past_key_values=caches[i], use_cache=True) for i, model in enumerate(models)]
        caches = [output.past_key_values for output in outputs]
        assert torch.equal(outputs[0].logits, outputs[1].logits)
