"""DeepSeek sparse attention: against transformers' models, against the slow reference, in all of its forms."""

import math
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from layer_pairs import Pair
from random_models import randomize
from references_latent import attention_calls, chosen, latent_row, project, scale_of
from samples import every
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, StaticCache

from configuration_zoo import ZooConfig
from modeling_zoo import ZooForCausalLM, ZooModel, ops_attention_indexer, ops_attention_latent, ops_attention_sparse
from modeling_zoo.attention_sparse_indexer import SharedIndices
from modeling_zoo.cache_upgrade import upgrade_cache

WIDTHS = {
    "hidden_size": 66, "num_attention_heads": 6, "kv_lora_rank": 20, "q_lora_rank": 28, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 10, "v_head_dim": 14, "index_topk": 8, "index_n_heads": 24, "index_head_dim": 18,
}  # fmt: skip
MODEL = {"vocab_size": 31, "intermediate_size": 24, "max_position_embeddings": 64}
DEFAULT = {"rope_type": "default", "rope_theta": 100.0}
# In the second, layers share what one indexer chose.
PAIRS = [("deepseek_v32", {}), ("glm_moe_dsa", {"attention_bias": True})]
STEPS = ((0, 9), (9, 10), (10, 13), (13, 22), (22, 23))
LENGTH, PADDED = 23, 4


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module", params=PAIRS, ids=str)
def pair(request, tmp_path_factory):
    """(transformers' model, zoo's) with the same weights: dense MLPs, more keys than the indexer selects."""
    torch.manual_seed(0)
    name, changes = request.param
    indexer = {"index_topk": 8, "index_n_heads": 24, "index_head_dim": 18}
    dense = {"mlp_layer_types": ["dense"] * 4, "num_hidden_layers": 4}
    both = Pair(tmp_path_factory.mktemp("pair"), name, 0, **indexer, **dense, **changes)
    both.ours.generation_config.eos_token_id = None
    # Theirs in float64, so that what differs is what zoo rounds, whatever the order of sums on this processor.
    return both.theirs.double(), both.ours


def tokens_and_mask(length=LENGTH, padded=PADDED):
    tokens = torch.randint(0, 31, (2, length), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    mask[0, :padded] = 0
    return tokens, mask


CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "without config": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config=config, max_cache_len=40),
    "better dynamic": lambda config: upgrade_cache(DynamicCache(config=config), config),
    "better without config": lambda config: upgrade_cache(DynamicCache(), config),
    "better static": lambda config: upgrade_cache(StaticCache(config=config, max_cache_len=40), config),
}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_equals_transformers_at_once(pair, backend):
    theirs, ours = pair
    # Their eager attention gives NaN for padding in float64.
    theirs.set_attn_implementation("sdpa")
    ours.set_attn_implementation(backend)
    tokens, mask = tokens_and_mask()
    with torch.no_grad():
        for arguments in ({}, {"attention_mask": mask}):
            expected, found = theirs(tokens, **arguments).logits, ours(tokens, **arguments).logits
            seen = mask.bool() if arguments else torch.ones_like(mask).bool()
            assert relative_error(found[seen], expected[seen]) < 2e-6
        # No more tokens than the indexer selects: nothing is left out.
        assert relative_error(ours(tokens[:, :8]).logits, theirs(tokens[:, :8]).logits) < 2e-6


@pytest.mark.sampled(5)
@pytest.mark.parametrize("padded", [0, PADDED])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("backend", every(2, ["sdpa", "eager"]))
def test_equals_transformers_in_steps(pair, backend, cache, padded):
    theirs, ours = pair
    # Their eager attention gives NaN for padding in float64.
    theirs.set_attn_implementation("sdpa")
    ours.set_attn_implementation(backend)
    tokens, mask = tokens_and_mask(padded=padded)
    their_cache, our_cache = DynamicCache(config=theirs.config), CACHES[cache](ours.config)
    for start, stop in STEPS:
        arguments = {"attention_mask": mask[:, :stop]} if padded else {}
        seen = mask[:, start:stop].bool()
        with torch.no_grad():
            expected = theirs(tokens[:, start:stop], past_key_values=their_cache, **arguments).logits[seen]
            found = ours(tokens[:, start:stop], past_key_values=our_cache, **arguments).logits[seen]
        assert relative_error(found, expected) < 2e-6, f"{start} to {stop}"
    for layer, (one, other) in enumerate(zip(our_cache.layers, their_cache.layers, strict=True)):
        if getattr(other, "indexer_keys", None) is None:
            assert getattr(one, "indexer_keys", None) is None, f"layer {layer} shares its indices"
        elif "static" not in cache:
            assert one.indexer_keys.shape == other.indexer_keys.shape


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "mode",
    [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"prefill_chunk_size": 4}, {"use_cache": False}],
    ids=str,
)
def test_generates_the_same_tokens(pair, mode):
    for model in pair:
        model.set_attn_implementation("sdpa")
    theirs, ours = pair
    tokens, mask = tokens_and_mask(12)
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": mask, "pad_token_id": 0}
    kept = {key: mode[key] for key in mode if key == "num_beams"}
    assert torch.equal(ours.generate(tokens, **options, **mode), theirs.generate(tokens, **options, **kept))


# -- every flag, against the slow reference ----------------------------------------------------------------------------

INDEXED = {
    **MODEL, **WIDTHS, "hidden_size": 20, "num_hidden_layers": 2, "attention_type": "latent", "index_topk": 5,
    "index_n_heads": 7, "layer_types": ["indexed_attention"] * 2, "rope_parameters": DEFAULT,
}  # fmt: skip
# The same model with plain latent attention.
DENSE = {"layer_types": ["full_attention"] * 2, **dict.fromkeys(("index_topk", "index_n_heads", "index_head_dim"))}
NO_ROPE = {"rope_parameters": None}
CASES = {
    "plain": {},
    "shared": {"indexer_types": ["full", "shared"]},
    "interleaved": {"rope_interleave": True},
    "indexer_interleaved": {"indexer.rope_interleave": True},
    "both_interleaved": {"rope_interleave": True, "indexer.rope_interleave": True, "precision.rope": "float32_qk"},
    "indexer_as_wide_as_the_rotation": {"index_head_dim": 10, "indexer.rope_interleave": True},
    "one_query_projection": {"q_lora_rank": None},
    "one_layer_dense": {"layer_types": ["full_attention", "indexed_attention"]},
    "no_rope": NO_ROPE | {"position_embedding_type": "none", "qk_rope_head_dim": 0},
    "no_rope_layer": {"no_rope_layers": [0, 1], "indexer_types": ["full", "shared"]},
    "shared_value_heads": {"num_key_value_heads": 2},
    "scaled": {"mla_config.scale_q_lora": True, "mla_config.scale_kv_lora": True, "attention_multiplier": 0.2},
    "temperature": {
        "attn_temperature.layers": "all", "attn_temperature.scale": 0.7, "attn_temperature.floor_scale": 3,
        "attn_temperature.offset": 1,
    },
    "gate": {"attn_output_gate": "query"},
    "capped_sinks": {"attention_sinks": "all", "attn_logit_softcapping": 1.1, "attn_output_gate": "headwise"},
}  # fmt: skip
TOKENS, FIRST = 13, 3


def make(changes, backend="eager", kind=ZooModel):
    torch.manual_seed(0)
    model = kind(ZooConfig(**INDEXED | changes, attn_implementation=backend)).eval()
    randomize(model)
    return model


def real(hidden, first=FIRST):
    return torch.cat((hidden[0, first:], hidden[1]))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_slow_reference(case):
    model = make(CASES[case])
    selections = [None, None]
    for module, given, found in attention_calls(model, *tokens_and_mask(TOKENS, FIRST)):
        parameters = module.state_dict()
        for row, first in enumerate((FIRST, 0)):
            shared = selections[row] if module.layer_idx and CASES[case].get("indexer_types") else None
            slow, selections[row] = latent_row(
                parameters, given[row], model.config, module.layer_idx, first, selection=shared
            )
            assert relative_error(found[row, first:], slow[first:]) < 1e-5, f"layer {module.layer_idx}, row {row}"
    indexed = [row for row in selections if row is not None]
    assert any(len(keys) < query + 1 for row in indexed for query, keys in enumerate(row)), "nothing was left out"


# -- its forms ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def in_steps(model, steps, padded=FIRST, cache=None):
    tokens, mask = tokens_and_mask(sum(steps), padded)
    cache = DynamicCache(config=model.config) if cache is None else cache
    parts, start = [], 0
    for count in steps:
        stop = start + count
        arguments = {"attention_mask": mask[:, :stop]} if padded else {}
        parts.append(model(tokens[:, start:stop], past_key_values=cache, **arguments).last_hidden_state)
        start = stop
    return real(torch.cat(parts, dim=1), padded)


def forced(patch, form):
    """Lets one form read wherever it can; returns the forms that ran."""
    ran = []
    for name in ("gathered", "masked"):
        plain = getattr(ops_attention_sparse, f"{name}_attention")

        def counted(*args, name=name, plain=plain, **kwargs):
            ran.append(name)
            return plain(*args, **kwargs)

        patch.setattr(ops_attention_sparse, f"{name}_attention", counted)
    if form != "gathered":
        patch.setattr(ops_attention_sparse, "gatherable_maps", lambda *args: None)
    patch.setattr(ops_attention_latent, "absorbed_is_cheaper", lambda *sizes: form != "expanded")
    return ran


FUSED = [case for case in CASES if not {"attn_logit_softcapping", "attention_sinks"} & set(CASES[case])]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("padded", [0, FIRST])
@pytest.mark.parametrize("case", every(4, FUSED))
def test_gathering_equals_masking(case, padded, monkeypatch):
    found = {}
    expected = None
    for form in ("gathered", "absorbed", "expanded"):
        model = make(CASES[case], "sdpa")
        with monkeypatch.context() as patch:
            ran = forced(patch, form)
            found[form] = in_steps(model, (7, 1, 3, 1, 1), padded)
        assert ("gathered" in ran) is (form == "gathered")
        assert ("masked" in ran) is (form != "gathered")
        with torch.no_grad():
            tokens, mask = tokens_and_mask(TOKENS, padded)
            arguments = {"attention_mask": mask} if padded else {}
            expected = real(model(tokens, use_cache=False, **arguments).last_hidden_state, padded)
        assert relative_error(found[form], expected) < 4e-6, form


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_blocks_of_queries_change_nothing(backend, monkeypatch):
    """Choosing, masking and gathering all go through the queries in blocks; here in blocks of a few."""
    for padded in (0, FIRST):
        for form in ("gathered", "expanded"):
            model = make({"indexer_types": ["full", "shared"]}, backend)
            with monkeypatch.context() as patch:
                forced(patch, form)
                expected = in_steps(model, (11, 2), padded)
                patch.setattr(ops_attention_indexer, "QUERY_BLOCK", 3)
                patch.setattr(ops_attention_sparse, "READING_BLOCK", 4)
                patch.setattr(ops_attention_sparse, "MOST_GATHERED", 2 * 5 * 30 * 2)
                assert relative_error(in_steps(model, (11, 2), padded), expected) < 2e-6


def test_attention_weights_are_those_of_all_keys():
    model = make({})
    tokens, mask = tokens_and_mask(TOKENS, FIRST)
    with torch.no_grad():
        weights = model(tokens, attention_mask=mask, output_attentions=True, use_cache=False).attentions
    assert weights[0].shape == (2, 6, TOKENS, TOKENS)
    assert ((weights[0][1] > 0).sum(dim=-1) == torch.arange(1, TOKENS + 1).clamp(max=5)).all()


def without_preference(model):
    """The model with every index score zero, so that the earliest keys are chosen."""
    for layer in model.layers:
        torch.nn.init.zeros_(layer.self_attn.indexer.weights_proj.weight)
    return model


def test_equal_scores_are_chosen_alike_in_one_pass_and_in_steps():
    """Both ways have to take the same keys."""
    model = without_preference(make({}, "sdpa"))
    with torch.no_grad():
        expected = real(model(tokens_and_mask(TOKENS, 0)[0], use_cache=False).last_hidden_state, 0)
    assert relative_error(in_steps(model, (1,) * TOKENS, 0), expected) < 4e-6


# -- costs -------------------------------------------------------------------------------------------------------------


class Watcher(TorchDispatchMode):
    """Keeps the size of the largest tensor that was made, and the operations that make the host wait for the device."""

    WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.masked_select", "aten.equal")

    def __init__(self):
        super().__init__()
        self.largest, self.waits = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if str(func).startswith(self.WAITING):
            self.waits.append(str(func))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result


def decoded(model, length, mode):
    """`mode` around one decoded token behind `length` cached ones."""
    tokens = torch.randint(0, 31, (1, length + 1), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(tokens[:, :-1], past_key_values=cache)
        with mode:
            model(tokens[:, -1:], past_key_values=cache)
    return mode


@pytest.mark.parametrize("indexed", [True, False])
def test_no_token_makes_the_host_wait(indexed):
    assert decoded(make({} if indexed else DENSE, "sdpa"), 20, Watcher()).waits == []


def test_a_token_costs_its_index_scan_and_k_keys():
    """Only scores grow with the length: 2 · heads · width for the products and 2 · heads for their sum, per key."""
    model = make({"indexer_types": ["full", "shared"]}, "sdpa")
    few, many = (decoded(model, length, FlopCounterMode(display=False)).get_total_flops() for length in (100, 180))
    assert many - few == 80 * 2 * 7 * (18 + 1)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_prompt_takes_memory_in_proportion_to_its_length(indexed, monkeypatch):
    monkeypatch.setattr(ops_attention_indexer, "QUERY_BLOCK", 16)
    monkeypatch.setattr(ops_attention_sparse, "READING_BLOCK", 16)
    changes = {"max_position_embeddings": 1024, "vocab_size": 300}
    model = make(changes | ({} if indexed else DENSE), "sdpa")
    largest = []
    for length in (400, 800):
        with torch.no_grad(), Watcher() as watcher:
            model(torch.arange(length)[None] % 300, use_cache=False)
        largest.append(watcher.largest)
    assert largest[1] <= 2.01 * largest[0]


@pytest.mark.long
@pytest.mark.parametrize("better", [False, True])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_compiled_token_is_one_graph(indexed, better):
    from torch._dynamo.testing import CompileCounterWithBackend

    changes = {"indexer_types": ["full", "shared"]} if indexed else DENSE
    model = make(changes, "sdpa", ZooForCausalLM)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model.forward, fullgraph=True, backend=counter, dynamic=False)
    tokens, _ = tokens_and_mask(TOKENS, 0)
    cache = StaticCache(config=model.config, max_cache_len=20)
    if better:
        upgrade_cache(cache, model.config)
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        model(tokens[:, :6], past_key_values=cache)
        for at in range(6, TOKENS):
            one, position = tokens[:, at : at + 1], torch.full((2, 1), at)
            embedded = model.model.embed_tokens(one)
            masks = model.create_masks_for_generate(model.config, embedded, None, cache, position)
            found = compiled(one, attention_mask=masks, position_ids=position, past_key_values=cache).logits
            assert relative_error(found[:, 0], expected[:, at]) < 4e-6
    assert counter.frame_count == 1


@pytest.mark.parametrize("indexed", [True, False])
def test_half_precision_in_steps_and_at_once(indexed):
    """A CPU lifts chunks of keys to float32 where gradients are off. The indexer is made to prefer the earliest keys:
    among scores that are nearly equal, rounding would choose."""
    model = make({} if indexed else DENSE, "sdpa")
    if indexed:
        without_preference(model)
    tokens, mask = tokens_and_mask(TOKENS, FIRST)
    with torch.no_grad():
        exact = real(model(tokens, attention_mask=mask).last_hidden_state)
        half = model.to(torch.bfloat16)
        found = real(half(tokens, attention_mask=mask, use_cache=False).last_hidden_state)
    stepped = in_steps(half, (6, 1, 3, 1, 1, 1))
    assert found.dtype == stepped.dtype == torch.bfloat16
    assert relative_error(found.float(), exact) < 0.05
    assert relative_error(stepped.float(), exact) < 0.05


# -- what layers share -------------------------------------------------------------------------------------------------


def gradients(model, checkpointed):
    model.zero_grad()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tokens, mask = tokens_and_mask(TOKENS, FIRST)
    model.train()
    model(tokens, attention_mask=mask, labels=tokens).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("coefficient", [0.0, 0.7])
def test_layers_computed_again_find_the_choice_they_had(coefficient):
    """Backward starts with the last layer: a later choice must not have replaced an earlier one by then."""
    changes = {
        "num_hidden_layers": 4, "layer_types": ["indexed_attention"] * 4, "indexer_types": ["full", "shared"] * 2,
        "indexer_loss_coef": coefficient,
    }  # fmt: skip
    model = make(changes, "sdpa", ZooForCausalLM)
    plain, again = gradients(model, False), gradients(model, True)
    assert plain.keys() == again.keys()
    for name in plain:
        assert relative_error(again[name], plain[name]) < 1e-6, name
    assert any("indexer" in name for name in plain) is (coefficient > 0)
    if coefficient:
        assert {name for name, _ in model.named_parameters()} == set(plain)


def test_a_shared_layer_needs_the_choice():
    model = make({"indexer_types": ["full", "shared"]})
    mixer, states = model.layers[1].self_attn, torch.randn(1, 7, 20)
    rotation = model.rotary_emb.tables_at(states, torch.arange(7)[None])["default"]
    with pytest.raises(ValueError, match="Layer 1 has no indexer: pass it the shared_indices of the earlier layers"):
        mixer(states, position_embeddings=rotation)
    with pytest.raises(ValueError, match="The indexer of layer 0 has not chosen in this forward"):
        mixer(states, position_embeddings=rotation, shared_indices=SharedIndices())


# -- training the indexer ----------------------------------------------------------------------------------------------


def slow_loss(parameters, x, config, layer, first, warmup):
    """Mean over the real tokens of KL(attention summed over heads ‖ softmax of the scores), one number at a time."""
    parameters = {name: value.double() for name, value in parameters.items()}
    x = x.double()
    tokens = [project(parameters, x[t], t, config, layer) for t in range(len(x))]
    sources = [token[0] for token in tokens]
    wide = type("", (), {**config.to_dict(), "index_topk": len(x) if warmup else config.index_topk})
    selection = chosen(parameters, x, sources, wide, layer, first)
    scores = index_table(parameters, x, sources, config)
    total = 0.0
    for q in range(first, len(x)):
        target = dict.fromkeys(sorted(selection[q]), 0.0)
        for head in range(config.num_attention_heads):
            weights = {
                k: math.exp(scale_of(config, layer) * float(tokens[q][1][head] @ tokens[k][2][head])) for k in target
            }
            for k in target:
                target[k] += weights[k] / sum(weights.values()) / config.num_attention_heads
        mass = sum(math.exp(scores[q][k]) for k in target)
        total += sum(p * (math.log(p) - scores[q][k] + math.log(mass)) for k, p in target.items())
    return total / (len(x) - first)


def index_table(parameters, x, sources, config):
    """Every score with the factors that a ranking does not need: 1 / sqrt(heads · width)."""
    from references_latent import normalise, turned

    turn, width = config.qk_rope_head_dim, config.index_head_dim
    keys = []
    for position, token in enumerate(x):
        key = normalise(parameters["indexer.wk.weight"] @ token, "layer_norm", config.mla_config["norm_eps"])
        key = key * parameters["indexer.k_norm.weight"] + parameters["indexer.k_norm.bias"]
        keys.append(turned(key, position, turn, config, False))
    table = []
    for position, token in enumerate(x):
        heads = (parameters["indexer.wq_b.weight"] @ sources[position]).view(-1, width)
        weights = parameters["indexer.weights_proj.weight"] @ token
        turned_heads = [turned(head, position, turn, config, False) for head in heads]
        table.append(
            [
                sum(float(w) * max(float(h @ k), 0.0) for w, h in zip(weights, turned_heads, strict=True))
                / math.sqrt(config.index_n_heads * width)
                for k in keys
            ]
        )
    return table


@pytest.mark.sampled(3)
@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_the_loss_is_the_divergence_from_attention(backend, warmup, monkeypatch):
    monkeypatch.setattr("modeling_zoo.train_indexer.TRAINING_BLOCK", 4)
    changes = {"indexer_loss_coef": 3.0, "indexer.warmup": warmup}
    model = make(changes, backend, ZooForCausalLM)
    calls = attention_calls(model.model, *tokens_and_mask(TOKENS, FIRST))
    tokens, mask = tokens_and_mask(TOKENS, FIRST)
    model.train()
    loss = model(tokens, attention_mask=mask, labels=tokens).loss
    model.config.indexer_loss_coef = 0.0
    plain = model(tokens, attention_mask=mask, labels=tokens).loss
    counts = [TOKENS - FIRST, TOKENS]
    expected = 0.0
    for module, given, _ in calls:
        rows = [
            slow_loss(module.state_dict(), given[row], model.config, module.layer_idx, first, warmup)
            for row, first in enumerate((FIRST, 0))
        ]
        expected += sum(row * count for row, count in zip(rows, counts, strict=True)) / sum(counts) / len(calls)
    assert expected > 0
    assert abs((loss - plain).item() / 3.0 - expected) < 1e-4 * expected


def test_the_loss_reaches_the_indexer_alone_and_lowers_the_divergence():
    model = make({"indexer_loss_coef": 1.0}, "sdpa", ZooForCausalLM).train()
    tokens, _ = tokens_and_mask(TOKENS, 0)
    shared = SharedIndices()
    model.model(tokens, shared_indices=shared, use_cache=False)
    shared.mean_loss().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if ".indexer." in name}
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if n in with_gradient], lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        shared = SharedIndices()
        model.model(tokens, shared_indices=shared, use_cache=False)
        losses.append(shared.mean_loss())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_warm_up_is_dense_and_ends_with_a_switch():
    warm = make({"indexer.warmup": True}, "sdpa")
    dense = make({"index_topk": 64}, "sdpa")
    sparse = make({}, "sdpa")
    tokens, mask = tokens_and_mask(TOKENS, FIRST)
    outputs = [real(model(tokens, attention_mask=mask).last_hidden_state) for model in (warm, dense, sparse)]
    assert relative_error(outputs[0], outputs[1]) < 1e-6
    assert relative_error(outputs[0], outputs[2]) > 1e-3
    assert relative_error(in_steps(warm, (6, 1, 6)), outputs[1]) < 4e-6
    warm.config.indexer["warmup"] = False
    assert relative_error(in_steps(warm, (6, 1, 6)), outputs[2]) < 4e-6


def test_a_loss_that_cannot_be_found_is_an_error():
    model = make({"indexer_loss_coef": 1.0}, "sdpa", ZooForCausalLM).train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    tokens, _ = tokens_and_mask(TOKENS, 0)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        model(tokens, labels=tokens)


# -- the config --------------------------------------------------------------------------------------------------------

REFUSED = {
    "'indexed_attention', which needs attention_type='latent', or 'grouped_query', in all such layers": {
        "attention_type": "forgetting",
        "head_dim": 4,
        **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")),
    },
    "index_topk=5 only means something with a layer of layer_types that is one of ['indexed_attention', ": {
        "layer_types": ["full_attention"] * 2
    },
    "indexer_types[0]='shared' needs a 'full' layer before it": {"indexer_types": ["shared", "full"]},
    "indexer_types[1]='none' does not go with layer_types[1]='indexed_attention'": {
        "indexer_types": ["full", "none"],
    },
    "indexer_types[1]='half' is not one of ['full', 'none', 'shared']": {"indexer_types": ["full", "half"]},
    "indexer_types has 1 entries but num_hidden_layers=2": {"indexer_types": ["full"]},
    "index_head_dim=8 must be at least qk_rope_head_dim / mla_config.rope_heads = 10": {"index_head_dim": 8},
    "cannot see the distances of position_embedding_type='alibi'": {"position_embedding_type": "alibi", **NO_ROPE},
    "cannot see the distances of position_embedding_type='relative'": {
        "position_embedding_type": "relative", **NO_ROPE,
    },
    "index_topk=0 must be greater than 0": {"index_topk": 0},
    "indexer_loss_coef=-1.0 must not be negative": {"indexer_loss_coef": -1.0},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_contradictions_are_refused(message):
    with pytest.raises(StrictDataclassError, match=re.escape(message)):
        ZooConfig(**INDEXED | REFUSED[message])


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal", "none"])
@torch.no_grad()
def test_repeated_tokens_are_chosen_in_steps_as_in_a_whole(position):
    """Equal tokens have equal index scores where nothing tells them apart, up to rounding: then they read the same."""
    for indexer_types in (["full", "full"], ["full", "shared"]):
        fields = {"position_embedding_type": position, "indexer_types": indexer_types}
        model = make(fields | ({} if position == "rope" else NO_ROPE), "sdpa")
        tokens = torch.randint(0, 4, (2, 40))
        whole, cache, found = model(tokens).last_hidden_state, None, []
        for token in tokens.split(1, dim=1):
            outputs = model(token, past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            found.append(outputs.last_hidden_state)
        assert relative_error(torch.cat(found, dim=1), whole) < 1e-5


def test_backends_that_cannot_be_masked_by_choice_are_refused():
    with pytest.raises(ValueError, match=r"'flex_attention' cannot compute .*index_topk=5: use one of .*'sdpa'"):
        make({}, "flex_attention")
    with pytest.raises(ValueError, match=r"'sdpa' cannot compute .*use one of \['eager'\]"):
        make({"attention_sinks": "all"}, "sdpa")
