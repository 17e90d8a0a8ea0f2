"""transformers' own common model tests, from its source distribution (see fetch_transformers_tests), on zoo."""

import unittest

import pytest
import torch

pytest.importorskip(
    "transformers_common", reason="run tests/support/fetch_transformers_tests.py first (make test does)"
)

from huggingface_hub.dataclasses import strict  # noqa: E402
from transformers.utils import logging  # noqa: E402
from transformers_common import test_modeling_common as common  # noqa: E402
from transformers_common.test_configuration_common import ConfigTester  # noqa: E402
from transformers_common.test_training_mixin import TrainingTesterMixin  # noqa: E402

from modeling_zoo import (  # noqa: E402
    ZooConfig,
    ZooForCausalLM,
    ZooForQuestionAnswering,
    ZooForSequenceClassification,
    ZooForTokenClassification,
    ZooModel,
)

# The mixins know a model's task by the names of transformers' own classes.
for task, name in (
    ("MODEL", "ZooModel"),
    ("MODEL_FOR_CAUSAL_LM", "ZooForCausalLM"),
    ("MODEL_FOR_SEQUENCE_CLASSIFICATION", "ZooForSequenceClassification"),
    ("MODEL_FOR_TOKEN_CLASSIFICATION", "ZooForTokenClassification"),
    ("MODEL_FOR_QUESTION_ANSWERING", "ZooForQuestionAnswering"),
):
    setattr(common, f"{task}_MAPPING_NAMES", {**getattr(common, f"{task}_MAPPING_NAMES"), "zoo": name})


@strict
class WindowlessConfig(ZooConfig):
    """The mixins set a window of 2 on any config that has the field; zoo refuses one that no layer uses."""

    def __setattr__(self, key, value):
        super().__setattr__(key, None if key == "sliding_window" else value)


# One model per way in which transformers' tests tell models apart: plain, and with everything that changes masks,
# caches or parameters.
VARIANTS = {
    "plain": {},
    "sliding": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5},
    "biased": {
        "position_embedding_type": "learned",
        "norm_type": "layer_norm",
        "gated_mlp": False,
        "hidden_act": "gelu",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "normed": {"qk_norm": "rms_norm", "block_type": "sandwich_norm", "attn_output_gate": "query"},
}


# Tests of a concept, and when a variant does not have it. Zoo has one class with and without experts, so the class
# cannot tell the mixins; test_sparse_models.py has the tests of experts, test_rotary.py those of the scalings.
NOT_FOR = {
    ("test_eager_matches_batched", "test_output_router_logits"): lambda flags: "num_experts" not in flags,
    ("test_model_rope",): lambda flags: flags.get("position_embedding_type", "rope") != "rope",
}


class ZooTester:
    """The tiny model and inputs that transformers' mixins ask for."""

    is_training = True
    batch_size, seq_length = 3, 7
    hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads = 32, 2, 4, 2
    intermediate_size, vocab_size, num_labels = 37, 99, 3
    max_position_embeddings = 128
    base_model_class, causal_lm_class = ZooModel, ZooForCausalLM
    sequence_classification_class = ZooForSequenceClassification
    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __init__(self, parent, **flags):
        self.parent, self.flags = parent, flags

    def get_config(self):
        sizes = (
            "hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size vocab_size "
            "max_position_embeddings pad_token_id bos_token_id eos_token_id"
        )
        shrinks_windows = self.parent._testMethodName.startswith("test_eager_matches_sdpa")
        config_class = WindowlessConfig if shrinks_windows and "sliding_window" not in self.flags else ZooConfig
        return config_class(**{name: getattr(self, name) for name in sizes.split()}, **self.flags)

    def prepare_config_and_inputs_for_common(self):
        input_ids = common.ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        # Padding ids inside a row would be read as padding by the classification head.
        input_ids = input_ids.clamp(min=3)
        mask = torch.tril(torch.ones_like(input_ids))
        return self.get_config(), {"input_ids": input_ids, "attention_mask": mask}


class Common(common.ModelTesterMixin, TrainingTesterMixin):
    """Every test of the mixins on every zoo class; a subclass names the variant."""

    all_model_classes = (
        ZooModel,
        ZooForCausalLM,
        ZooForSequenceClassification,
        ZooForTokenClassification,
        ZooForQuestionAnswering,
    )
    training_overfit_steps = 60
    training_loss_reduction_threshold = 0.5
    training_grad_norm_reduction_threshold = 0.0
    variant = None

    def setUp(self):
        # The mixins read transformers' warnings.
        logging.set_verbosity_warning()
        self.addCleanup(logging.set_verbosity_error)
        for tests, missing in NOT_FOR.items():
            if self._testMethodName.startswith(tests) and missing(VARIANTS[self.variant]):
                self.skipTest("this variant has no experts or no rotary positions to test")
        self.model_tester = ZooTester(self, **VARIANTS[self.variant])
        self.config_tester = ConfigTester(self, config_class=ZooConfig, hidden_size=64)

    def test_generation_tester_mixin_inheritance(self):
        self.skipTest("the source distribution has no generation tests; test_generation.py has zoo's own")

    def test_config(self):
        self.config_tester.run_common_tests()


class PlainTest(Common, unittest.TestCase):
    variant = "plain"
    all_model_classes = (ZooModel, ZooForCausalLM)


@pytest.mark.long
class HeadsTest(Common, unittest.TestCase):
    variant = "plain"


@pytest.mark.long
class SlidingTest(Common, unittest.TestCase):
    variant = "sliding"


@pytest.mark.long
class BiasedTest(Common, unittest.TestCase):
    variant = "biased"


@pytest.mark.long
class NormedTest(Common, unittest.TestCase):
    variant = "normed"
