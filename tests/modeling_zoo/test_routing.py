"""Which experts a token goes to: every router against one that decides number by number, and what a config refuses."""

import pytest
import references_experts as slow
import torch
from huggingface_hub.errors import StrictDataclassError
from random_experts import D, E, K, randomize, zoo_config
from transformers.models.phimoe.modeling_phimoe import sparsemixer as their_sparsemixer

from configuration_zoo import ZooConfig, fields_experts, fields_precision
from configuration_zoo.field_settings import described
from modeling_zoo.mlp_routers import (
    GROUP_MASK_VALUES,
    GROUP_SCORES,
    ROUTERS,
    SCORING_FUNCTIONS,
    Router,
    limit_groups,
    sparsemixer,
)

BIASED = {"use_score_correction_bias": True, "router.bias": True}
ROUTINGS = {
    "softmax": {},
    "softmax_raw": {"norm_topk_prob": False, "routed_scaling_factor": 3.5},
    "softmax_biased_groups": {**BIASED, "n_group": 3, "topk_group": 2, "router.group_score": "max"},
    "sigmoid_groups": {"scoring_func": "sigmoid", **BIASED, "n_group": 4, "topk_group": 2},
    "sigmoid_one_group": {"scoring_func": "sigmoid", "n_group": 1, "topk_group": 1},
    "sqrtsoftplus_groups": {
        **{"scoring_func": "sqrtsoftplus", "n_group": 2, "topk_group": 1, "router.group_score": "top2_sum"},
        "router.group_mask_value": "zero",
    },
    "softmax_after": {"router.score_after_topk": True, **BIASED},
    "sigmoid_after": {"router.score_after_topk": True, "scoring_func": "sigmoid", "router.norm_topk_min": 2.5},
    "sqrtsoftplus_after": {
        "router.score_after_topk": True,
        "scoring_func": "sqrtsoftplus",
        "router.norm_topk_eps": 0.5,
    },
    "sparsemixer": {"scoring_func": "sparsemixer", "router.sparsemixer_jitter_eps": 0.4, "router.bias": True},
    "zero_experts": {"zero_expert_num": 5, **BIASED},
    "normed_input": {"router.input_norm": True, "router.input_multiplier": 1.7, "norm_eps": 1e-3},
    "capped": {"router.logit_softcapping": 0.4, "scoring_func": "sigmoid", **BIASED},
    "per_expert_scale": {"router.per_expert_scale": True, "routed_scaling_factor": 0.5},
}


def router_of(**flags):
    config = zoo_config(**flags)
    return config, randomize(ROUTERS[config.scoring_func](config)).eval()


@pytest.mark.parametrize("flags", ROUTINGS.values(), ids=ROUTINGS)
def test_a_router_decides_as_one_would_by_hand(flags):
    config, router = router_of(**flags)
    tokens = torch.randn(40, D)
    logits, weights, experts = router(tokens)
    state = {f"gate.{name}": tensor.double() for name, tensor in router.state_dict().items()}
    bias = state.get("gate.e_score_correction_bias")
    for row, x in enumerate(tokens.double()):
        by_hand = slow.router_logits(x, state, config)
        chosen = slow.route(by_hand, None if bias is None else bias.tolist(), config)
        scale = state.get("gate.per_expert_scale", torch.ones(config.num_router_outputs))
        wanted = {e: w * config.routed_scaling_factor * scale[e].item() for e, w in chosen.items()}
        torch.testing.assert_close(logits[row].double(), torch.tensor(by_hand).double(), rtol=2e-6, atol=2e-6)
        assert set(experts[row].tolist()) == set(wanted)
        found = dict(zip(experts[row].tolist(), weights[row].tolist(), strict=True))
        assert found == pytest.approx(wanted, rel=4e-6)


def test_the_choices_differ_from_plain_softmax_where_a_flag_says_so():
    """The cases above would prove little if their biases and groups never changed an expert."""
    torch.manual_seed(1)
    tokens = torch.randn(40, D)
    for name in ("softmax_biased_groups", "sigmoid_groups", "sqrtsoftplus_groups", "softmax_after"):
        config, router = router_of(**ROUTINGS[name])
        logits, _, experts = router(tokens)
        plain = logits.topk(K, dim=-1).indices
        assert not torch.equal(experts.sort().values, plain.sort().values), name


def test_the_registries_are_what_the_config_accepts():
    assert set(ROUTERS) == set(fields_experts.SCORING_FUNCS)
    assert set(ROUTERS) - {"sparsemixer"} == set(SCORING_FUNCTIONS)
    assert set(GROUP_SCORES) == set(fields_experts.GROUP_SCORES)
    assert set(GROUP_MASK_VALUES) == set(fields_experts.GROUP_MASK_VALUES)


def test_groups_outside_the_best_are_masked_and_no_others():
    scores = torch.tensor([[0.9, 0.1, 0.6, 0.5, 0.2, 0.3]])
    masked = torch.tensor([[False, False, False, False, True, True]])
    assert torch.equal(limit_groups(scores, 3, 2, "max", -1.0), scores.masked_fill(masked, -1.0))
    assert torch.equal(
        limit_groups(scores, 3, 1, "top2_sum", 0.0) > 0, torch.tensor([[False, False, True, True] + [False] * 2])
    )
    assert torch.equal(limit_groups(scores, 3, 1, "max", 0.0) > 0, torch.tensor([[True, True] + [False] * 4]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("router_dtype", fields_precision.ROUTER_DTYPES)
@pytest.mark.parametrize("weights_dtype", fields_precision.ROUTER_WEIGHTS_DTYPES)
def test_router_dtypes(router_dtype, weights_dtype, dtype):
    torch.set_default_dtype(dtype)
    try:
        _, router = router_of(
            precision={"router": router_dtype, "router_weights": weights_dtype}, use_score_correction_bias=True
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert router.weight.dtype == (torch.float32 if router_dtype == "float32_weight" else dtype)
    assert router.e_score_correction_bias.dtype == torch.float32
    logits, weights, _ = router(torch.randn(7, D, dtype=dtype))
    assert logits.dtype == (dtype if router_dtype in ("activation", "float32_scores") else torch.float32)
    assert weights.dtype == (torch.float32 if weights_dtype == "float32" else dtype)


def test_scores_are_float32_unless_the_flag_says_activation():
    tokens = torch.randn(64, D).bfloat16()
    routers = {
        dtype: router_of(precision={"router": dtype})[1] for dtype in ("activation", "float32_scores", "float32_linear")
    }
    state = routers["activation"].state_dict()
    for router in routers.values():
        router.load_state_dict(state)
        router.bfloat16()
    weights = {dtype: router(tokens)[1] for dtype, router in routers.items()}
    assert torch.equal(weights["activation"], weights["activation"].bfloat16().float())
    assert not torch.equal(weights["float32_scores"], weights["float32_scores"].bfloat16().float())
    assert not torch.equal(weights["float32_scores"], weights["float32_linear"])


def test_autocast_does_not_lower_a_float32_router():
    _, router = router_of(precision={"router": "float32_linear"}, router={"bias": True})
    tokens = torch.randn(16, D)
    wanted = router(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = router(tokens)
    assert found[0].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_routers_run_on_the_meta_device():
    with torch.device("meta"):
        router = ROUTERS["sigmoid"](zoo_config(scoring_func="sigmoid", precision={"router": "float32_linear"}))
        shapes = [tuple(output.shape) for output in router(torch.empty(5, D))]
    assert shapes == [(5, E), (5, K), (5, K)]


def test_routers_initialize_every_tensor():
    flags = {"router.input_norm": True, "router.per_expert_scale": True, **BIASED}
    _, router = router_of(**flags)
    with torch.no_grad():
        for tensor in router.state_dict().values():
            tensor.fill_(torch.nan)
    for module in router.modules():
        module.initialize(0.02)
    state = router.state_dict()
    assert state["weight"].std().item() == pytest.approx(0.02, rel=0.2)
    assert not any(state[name].any() for name in ("bias", "e_score_correction_bias"))
    assert torch.equal(state["per_expert_scale"], torch.ones(E)) and torch.equal(state["norm.weight"], torch.ones(D))


# -- sparsemixer in training: sampled, with a gradient estimate ----------------------------------------------------


@pytest.fixture
def draws_that_keep(monkeypatch):
    """Both implementations draw their uniform numbers differently; 0.9 keeps every weight's scale at one."""
    monkeypatch.setattr(torch, "rand_like", lambda tensor, **kwargs: torch.full_like(tensor, 0.9))
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize("training", [False, True])
def test_sparsemixer_equals_its_original(training, draws_that_keep):
    results = []
    for function in (their_sparsemixer, lambda scores, eps, train: sparsemixer(scores, 2, eps, train)):
        torch.manual_seed(3)
        scores = torch.randn(50, E, requires_grad=True)
        weights, experts = function(scores, 0.3, training)
        (weights * torch.randn(50, 2)).sum().backward()
        results.append((weights.detach(), experts, scores.grad))
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][0], results[1][0], rtol=2e-6, atol=0)
    torch.testing.assert_close(results[0][2], results[1][2], rtol=2e-6, atol=1e-8)
    sampled = (experts[:, 0] != scores.argmax(dim=-1)).any()
    assert bool(sampled) is training


def test_sparsemixer_scales_three_quarters_of_the_other_picks_by_a_third():
    torch.manual_seed(0)
    scores = torch.randn(4000, E, requires_grad=True)
    weights, experts = sparsemixer(scores, 1, 10.0, training=True)
    probabilities = scores.softmax(dim=-1)
    ratio = weights / probabilities.gather(-1, experts)
    is_best = experts == scores.argmax(dim=-1, keepdim=True)
    assert torch.allclose(ratio[is_best], torch.ones(()))
    others = ratio[~is_best]
    scaled = torch.isclose(others, torch.tensor(1 / 3))
    assert torch.all(scaled | torch.isclose(others, torch.ones(())))
    assert scaled.float().mean().item() == pytest.approx(0.75, abs=0.03)
    (gradient,) = torch.autograd.grad(weights.sum(), scores, retain_graph=True)
    (straight,) = torch.autograd.grad(probabilities.gather(-1, experts).sum(), scores)
    torch.testing.assert_close(gradient, straight)


# -- the config ----------------------------------------------------------------------------------------------------

MOE = {"num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
REFUSED = [
    ({"num_experts": 4}, "needs num_experts_per_tok"),
    ({"mlp_layer_types": ["sparse"]}, "needs num_experts, which is not set"),
    ({"scoring_func": "softmax"}, "scoring_func='softmax' only means something with a 'sparse' layer"),
    ({**MOE, "mlp_layer_types": ["dense"]}, "num_experts=12 only means something with a 'sparse' layer"),
    ({**MOE, "num_experts_per_tok": 13}, "num_experts_per_tok=13 must not exceed the 12 experts"),
    ({**MOE, "num_experts": 0}, "num_experts=0 must be greater than 0"),
    ({**MOE, "scoring_func": "sigmod"}, "Did you mean 'sigmoid'"),
    ({**MOE, "precision.router": "fp32"}, "precision.router='fp32' is not one of"),
    ({**MOE, "precision.router_weights": "bf16"}, "precision.router_weights='bf16' is not one of"),
    ({**MOE, "topk_group": 1}, "topk_group=1 only means something with n_group"),
    ({**MOE, "n_group": 4}, "n_group needs topk_group"),
    ({**MOE, "n_group": 5, "topk_group": 1}, "n_group=5 must divide the 12 experts"),
    ({**MOE, "n_group": 4, "topk_group": 5}, "topk_group=5 must be at most n_group=4"),
    ({**MOE, "n_group": 6, "topk_group": 1}, "must hold num_experts_per_tok=3"),
    ({**MOE, "n_group": 12, "topk_group": 3}, "router.group_score='top2_sum' needs groups of two"),
    ({**MOE, "n_group": 4, "topk_group": 2, "router.group_score": "mean"}, "router.group_score='mean' is not one of"),
    (
        {**MOE, "n_group": 4, "topk_group": 2, "router.score_after_topk": True},
        "n_group=4 only means something with router.score_after",
    ),
    ({**MOE, "scoring_func": "sparsemixer", "norm_topk_prob": True}, "norm_topk_prob=True only means something with"),
    ({**MOE, "scoring_func": "sparsemixer", "use_score_correction_bias": True}, "use_score_correction_bias=True only"),
    ({**MOE, "router.sparsemixer_jitter_eps": 0.1}, "only means something with scoring_func='sparsemixer'"),
    (
        {**MOE, "norm_topk_prob": False, "router.norm_topk_eps": 1e-6},
        "router.norm_topk_eps=1e-06 only means something with norm_topk",
    ),
    ({**MOE, "router.norm_topk_eps": -1.0}, "router.norm_topk_eps=-1.0 must not be negative"),
    ({**MOE, "routed_scaling_factor": 0}, "routed_scaling_factor=0 must be greater than 0"),
    ({**MOE, "router.jitter_noise": 1.0}, "router.jitter_noise=1.0 must be below 1"),
    (
        {**MOE, "router.input_multiplier": 2.0},
        "router.input_multiplier=2.0 only means something with router.input_norm",
    ),
    ({**MOE, "zero_expert_type": "zero"}, "zero_expert_type='zero' only means something with zero_expert_num"),
    ({**MOE, "zero_expert_num": 2, "zero_expert_type": "copy"}, "zero_expert_type='copy' is not one of"),
    ({**MOE, "zero_expert_num": 2, "router.weight_on_input": True}, "cannot be combined with zero_expert_num"),
    ({**MOE, "gated_mlp": False, "swiglu_limit": 7.0}, "swiglu_limit=7.0 only means something with gated_mlp=True"),
    ({**MOE, "swiglu_limit": -7.0}, "swiglu_limit=-7.0 must be greater than 0"),
    (
        {**MOE, "hidden_act": "gelu", "swiglu_config.alpha": 1.7},
        "swiglu_config.alpha=1.7 needs hidden_act='silu', got 'gelu'",
    ),
    ({**MOE, "shared_expert_gate": True}, "shared_expert_gate=True only means something with n_shared_experts"),
    ({**MOE, "n_shared_experts": -1}, "n_shared_experts=-1 must not be negative"),
    ({**MOE, "n_shared_experts": 1, "shared_expert_combination_strategy": "mean"}, "strategy='mean' is not one of"),
    ({**MOE, "router_z_loss_coef": -0.1}, "router_z_loss_coef=-0.1 must not be negative"),
    ({**MOE, "num_expert": 12}, "Did you mean 'num_experts'"),
]


@pytest.mark.parametrize(("flags", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_a_config_that_makes_no_sense_says_why(flags, sentence):
    with pytest.raises((StrictDataclassError, ValueError)) as raised:
        ZooConfig(hidden_size=D, num_attention_heads=4, num_hidden_layers=1, **flags)
    assert sentence in str(raised.value)


def test_what_is_left_out_is_written_out_and_resolving_again_changes_nothing():
    config = zoo_config(num_hidden_layers=3, mlp_layer_types=["dense", "sparse", "sparse"], n_shared_experts=2)
    assert config.shared_expert_intermediate_size == 2 * config.moe_intermediate_size
    left_out = [name for name in described(fields_experts.ExpertFields) if getattr(config, name) is None]
    unselected = {"swiglu_limit", *fields_experts.GROUP_FIELDS, "n_group", "router.norm_topk_min"}
    unselected |= {"router.logit_softcapping", "router.latent_norm"}
    unselected |= {"moe_latent_size", "zero_expert_num", "zero_expert_type", "router.sparsemixer_jitter_eps"}
    assert set(left_out) == unselected | {"router.input_multiplier"}
    again = ZooConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()


def test_a_dense_config_has_no_expert_setting():
    config = ZooConfig(hidden_size=D, num_attention_heads=4, num_hidden_layers=2)
    assert {getattr(config, name) for name in described(fields_experts.ExpertFields)} == {None}


def test_every_layer_is_sparse_and_as_wide_as_a_dense_one_unless_said_otherwise():
    config = ZooConfig(hidden_size=D, num_attention_heads=4, num_hidden_layers=3, num_experts=E, num_experts_per_tok=K)
    assert config.mlp_layer_types == ["sparse"] * 3
    assert config.moe_intermediate_size == config.intermediate_size > 0


def test_per_layer_numbers_reach_their_router():
    config = zoo_config(num_hidden_layers=3, per_layer_config={1: {"num_experts_per_tok": 5}})
    tokens = torch.randn(4, D)
    counts = [randomize(ROUTERS["softmax"](config.per_layer_config[i]))(tokens)[2].shape[1] for i in range(3)]
    assert counts == [K, 5, K] and issubclass(ROUTERS["softmax"], Router)
