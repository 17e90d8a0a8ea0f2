"""What a training step writes grows with its tokens and not with their square: counted, for every recurrent mixer.

A loop over tokens or chunks that takes each by its index has a gradient as large as all of them for each.
"""

from functools import partial

import pytest
import torch
from counted_work import counted
from random_mixers import VARIANTS, WIDTH, mixer_of


@pytest.mark.parametrize("variant", VARIANTS)
def test_work_grows_with_the_tokens(variant):
    mixer = mixer_of(variant)

    def step(length):
        mixer(torch.randn(1, length, WIDTH, requires_grad=True))[0].sum().backward()

    # Whole chunks, several segments of 512 tokens, and numbers with a root, by which a diagonal recurrence cuts.
    some, more = (counted(partial(step, length)) for length in (24**2, 48**2))
    assert more < 4.02 * some
