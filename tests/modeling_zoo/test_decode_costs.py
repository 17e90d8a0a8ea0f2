"""What a decoded token must not cost: waiting for the device, and compiling again."""

import pytest
import torch
from random_models import randomize
from tiny_fields import GROUPED, LATENT, WIDTHS
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CompileConfig, DynamicCache, StaticCache

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM
from modeling_zoo.cache_upgrade import upgrade_cache

SIZES = WIDTHS | {"vocab_size": 31, "num_hidden_layers": 3, "max_position_embeddings": 64}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
CASES = {
    "softmax": GROUPED,
    "sliding": GROUPED | {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 5}
    | {"num_hidden_layers": 4},
    "latent": LATENT,
    "sparse": LATENT | {
        "layer_types": ["indexed_attention"] * 3, "index_topk": 5, "index_n_heads": 3, "index_head_dim": 8,
    },
    "experts": GROUPED | {
        "mlp_layer_types": ["sparse"] * 3, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
    },
    "recurrent": GROUPED | DELTA | {
        "layer_types": ["linear_attention"] * 2 + ["full_attention"], "linear_attention_type": "gated_delta_net",
    },
}  # fmt: skip


def make(case):
    torch.manual_seed(1)
    model = ZooForCausalLM(ZooConfig(**(SIZES | CASES[case]), attn_implementation="sdpa"))
    randomize(model)
    return model.eval()


class Waits(TorchDispatchMode):
    """The operations whose result, or its shape, the host has to wait for."""

    NAMES = (
        "aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.masked_select", "aten.equal",
        "aten._unique", "aten.unique", "aten.bincount",
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.seen = []

    def __enter__(self):
        # On a CPU these two call no operation.
        self.real = {name: getattr(torch.Tensor, name) for name in ("tolist", "numpy")}
        for name, method in self.real.items():
            setattr(torch.Tensor, name, self.watched(name, method))
        return super().__enter__()

    def __exit__(self, *error):
        for name, method in self.real.items():
            setattr(torch.Tensor, name, method)
        return super().__exit__(*error)

    def watched(self, name, method):
        def call(*args, **kwargs):
            self.seen.append(name)
            return method(*args, **kwargs)

        return call

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # Indexing by booleans makes a shape that depends on them.
        chosen = args[1] if str(function).startswith("aten.index.") else ()
        by_truth = any(part is not None and part.dtype == torch.bool for part in chosen)
        if by_truth or str(function).startswith(self.NAMES):
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def waits_per_token(model, cache, padding_mask=False, count=3):
    tokens = torch.randint(1, 31, (2, 12 + count), generator=torch.Generator().manual_seed(2))
    model(tokens[:, :12], past_key_values=cache)
    with Waits() as waits:
        for at in range(12, 12 + count):
            mask = {"attention_mask": torch.ones(2, at + 1, dtype=torch.long)} if padding_mask else {}
            model(tokens[:, at : at + 1], past_key_values=cache, **mask)
    return waits.seen


@pytest.mark.parametrize("case", CASES)
def test_no_token_waits_for_the_device(case):
    model = make(case)
    assert waits_per_token(model, upgrade_cache(DynamicCache(config=model.config), model.config)) == []


@pytest.mark.parametrize("case", ["softmax", "sliding", "latent", "experts", "recurrent"])
def test_a_padding_mask_is_looked_at_once_for_each_kind_of_mask(case):
    """transformers' builder looks whether it hides anything; no layer looks again."""
    model = make(case)
    cache = upgrade_cache(DynamicCache(config=model.config), model.config)
    attention = [rule for rule in model.model.mask_plan if rule.kind != "linear_attention"]
    assert len(waits_per_token(model, cache, padding_mask=True, count=3)) <= 3 * len(attention)


def test_waiting_is_noticed():
    with Waits() as waits:
        values = torch.tensor([1.0, 0.0])
        values[0].item(), bool(values[0] > 0), values.nonzero(), values.tolist(), values[values > 0], values.unique()
    assert len(waits.seen) >= 6


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_static_cache_decodes_with_one_graph(case):
    """One graph for every token and all layers, and none again for another sequence."""
    from torch._dynamo.testing import CompileCounterWithBackend

    model = make(case)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model.forward, fullgraph=True, backend=counter, dynamic=False)
    tokens = torch.randint(1, 31, (2, 20), generator=torch.Generator().manual_seed(2))
    expected = model(tokens, use_cache=False).logits
    cache = upgrade_cache(StaticCache(config=model.config, max_cache_len=24), model.config)
    for _ in range(2):
        model(tokens[:, :9], past_key_values=cache)
        for at in range(9, 20):
            one, position = tokens[:, at : at + 1], torch.full((2, 1), at)
            embedded = model.model.embed_tokens(one)
            masks = model.create_masks_for_generate(model.config, embedded, None, cache, position)
            found = compiled(one, attention_mask=masks, position_ids=position, past_key_values=cache).logits
            torch.testing.assert_close(found[:, 0], expected[:, at], rtol=1e-4, atol=1e-4)
        cache.reset()
    torch._dynamo.reset()
    assert counter.frame_count == 1


GENERATED = CASES | {
    "chunked": GROUPED | {"layer_types": ["chunked_attention"] * 3, "attention_chunk_size": 5},
    "forgetting": GROUPED | {"attention_type": "forgetting"},
    "stick_breaking": GROUPED | {"attention_type": "stick_breaking"},
    "path": GROUPED | {"attention_type": "path"},
    "differential": GROUPED | {"attention_type": "differential"},
    "value_residual": GROUPED | {"attention_type": "value_residual"},
    "multi_matrix_factorization": GROUPED | {
        "attention_type": "multi_matrix_factorization", "num_key_value_heads": 1,
    },
    "tensor_product": GROUPED | {"attention_type": "tensor_product"},
    "grouped_tied": GROUPED | {"attention_type": "grouped_tied"},
    "indexed blocks": GROUPED | {
        "layer_types": ["indexed_attention"] * 3, "index_topk": 6, "index_n_heads": 1, "index_head_dim": 10,
        "indexer": {"block_size": 2},
    },
    "mamba2": GROUPED | DELTA | {"layer_types": ["linear_attention"] * 3, "linear_attention_type": "mamba2"},
}  # fmt: skip


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize("case", GENERATED)
def test_generate_compiles_a_static_cache_once(case, monkeypatch):
    """By generate's own compile_config: one graph for all tokens, and the tokens of a growing cache."""
    from torch._dynamo.utils import counters

    monkeypatch.setitem(CASES, case, GENERATED[case])
    model, tokens = make(case), torch.randint(1, 31, (2, 9), generator=torch.Generator().manual_seed(2))
    torch._dynamo.reset()
    counters.clear()
    compiled = CompileConfig(fullgraph=True, dynamic=False, backend="eager", mode=None)
    compiled._compile_all_devices = True
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(tokens, **options)
    found = model.generate(tokens, cache_implementation="static", compile_config=compiled, **options)
    graphs = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    assert torch.equal(found, expected) and graphs == 1


def test_a_mixer_without_a_static_cache_says_so():
    """Compressed attention keeps entries of several tokens, which no cache of fixed size holds."""
    fields = GROUPED | {
        "layer_types": ["heavily_compressed_attention"] * 3, "sliding_window": 5, "attention_k_eq_v": True,
        "num_key_value_heads": 1, "position_config": {"rope_values": True},
    }  # fmt: skip
    model = ZooForCausalLM(ZooConfig(**(SIZES | fields))).eval()
    with pytest.raises(ValueError, match="compressed attention, which has no cache of fixed size"):
        model.generate(torch.ones(1, 4, dtype=torch.long), cache_implementation="static", max_new_tokens=2)
