"""The rule algebra: each operation against indexing written out by hand, its inverse, and the meta device."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conversion.engine.family import Family
from conversion.engine.patterns import Pattern, natural_key
from conversion.engine.plan import LazyTensors, Planner
from conversion.engine.rules import (
    Concat,
    Context,
    Deinterleave,
    Drop,
    Join,
    Keep,
    PermuteRope,
    Reshape,
    Rule,
    Slots,
    Split,
    Stack,
    StackExperts,
    SwapHalves,
    Transpose,
    renames,
)
from conversion.errors import ConversionError

CONFIG = SimpleNamespace(
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=12,
    hidden_size=10,
    num_experts=5,
    num_hidden_layers=3,
    rope_parameters={"rope_theta": 1e4},
    layer_types=["full_attention", "linear_attention", "full_attention"],
)
CTX = Context(CONFIG, {"i": 1})
Q, K, V = 72, 24, 24


def back_and_meta(op, tensors, ctx=CTX):
    """The result of `op`, after checking its inverse bit for bit and its shapes on the meta device."""
    result = op.forward(tensors, ctx)
    for found, original in zip(op.backward(result, ctx), tensors, strict=True):
        if isinstance(original, list):
            assert all(torch.equal(a, b) for a, b in zip(found, original, strict=True))
        else:
            assert torch.equal(found, original)
    meta = [[t.to("meta") for t in slot] if isinstance(slot, list) else slot.to("meta") for slot in tensors]
    assert [tensor.shape for tensor in op.forward(meta, ctx)] == [tensor.shape for tensor in result]
    return result


def test_split_named_parts():
    fused = torch.randn(Q + K + V, 10)
    q, k, v = back_and_meta(Split("q", "k", "v"), [fused])
    assert torch.equal(q, fused[:72]) and torch.equal(k, fused[72:96]) and torch.equal(v, fused[96:])


def test_split_transposed_columns():
    fused = torch.randn(10, Q + K + V)
    transposed = back_and_meta(Transpose(), [fused])[0]
    assert torch.equal(Split("q", "k", "v").forward([transposed], CTX)[1], fused[:, 72:96].T)
    bias = torch.randn(7)
    assert back_and_meta(Transpose(), [bias])[0] is bias


def test_split_in_groups_takes_each_groups_rows():
    # [group, (3 queries, k, v), head_dim]
    fused = torch.randn(Q + K + V, 10)
    q, k, v = back_and_meta(Split("3*head_dim", "head_dim", "head_dim", groups="num_key_value_heads"), [fused])
    rows = fused.view(2, 5, 12, 10)
    assert torch.equal(q, rows[:, :3].reshape(72, 10))
    assert torch.equal(k, rows[:, 3].reshape(24, 10)) and torch.equal(v, rows[:, 4].reshape(24, 10))


def test_concat_is_split_read_backwards():
    parts = [torch.randn(4, 3), torch.randn(6, 3)]
    (joined,) = back_and_meta(Concat(4, 6), parts)
    assert torch.equal(joined, torch.cat(parts))


def test_join_is_cut_where_it_was_cut_else_by_its_sizes():
    whole, join = torch.randn(Q + K + V, 1, 3), Join("q", "k", "v")
    thirds = list(whole.chunk(3))
    joined = back_and_meta(join, thirds, Context(CONFIG, {"i": 1}, shapes=[part.shape for part in thirds]))
    assert torch.equal(joined[0], whole)
    q, k, v = join.backward([whole], CTX)
    assert torch.equal(q, whole[:72]) and torch.equal(k, whole[72:96]) and torch.equal(v, whole[96:])
    with pytest.raises(ValueError, match=r"\[72, 24\] rows do not join to \[72, 24, 24\]"):
        join.forward([whole[:72], whole[72:96]], CTX)


def test_split_refuses_sizes_that_do_not_add_up():
    with pytest.raises(ValueError, match="121 rows do not split into"):
        Split("q", "k", "v").forward([torch.randn(121, 2)], CTX)
    with pytest.raises(ValueError, match="7 rows do not split into 2 groups"):
        Split(parts=2, groups=2).forward([torch.randn(7, 2)], CTX)
    with pytest.raises(ValueError, match="sizes or parts"):
        Split()


def test_stack_experts_puts_gate_before_up():
    gate, up = ([torch.randn(8, 3) for _ in range(5)] for _ in range(2))
    ctx = Context(CONFIG, theirs=2)
    (fused,) = back_and_meta(StackExperts(), [gate, up], ctx)
    assert fused.shape == (5, 16, 3)
    assert torch.equal(fused[3, :8], gate[3]) and torch.equal(fused[3, 8:], up[3])


def test_stack_of_scalars_vectors_and_unequal_tensors():
    (rows,) = back_and_meta(Stack(), [[torch.randn(7) for _ in range(4)]])
    assert rows.shape == (4, 7)
    (numbers,) = back_and_meta(Stack(), [[torch.tensor(float(n)) for n in range(4)]])
    assert numbers.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="differ"):
        Stack().forward([[torch.randn(3), torch.randn(1)]], CTX)


@given(heads=st.integers(1, 5), half=st.integers(1, 6), rest=st.integers(0, 3), start=st.integers(0, 3))
def test_permute_rope_reorders_pairs_inside_every_head(heads, half, rest, start):
    head_dim = start + 2 * half + rest
    weight = torch.randn(heads * head_dim, 2)
    (found,) = back_and_meta(PermuteRope(2 * half, head_dim=head_dim, start=start), [weight])
    for head in range(heads):
        rows, old = found[head * head_dim : (head + 1) * head_dim], weight[head * head_dim : (head + 1) * head_dim]
        for pair in range(half):
            assert torch.equal(rows[start + pair], old[start + 2 * pair])
            assert torch.equal(rows[start + half + pair], old[start + 2 * pair + 1])
        untouched = [*range(start), *range(start + 2 * half, head_dim)]
        assert torch.equal(rows[untouched], old[untouched])


def test_permute_rope_reads_the_partial_factor_of_the_layer():
    config = SimpleNamespace(**vars(CONFIG))
    nested = {"linear_attention": {"partial_rotary_factor": 0.5}, "full_attention": {"partial_rotary_factor": 1.0}}
    for parameters in ({"partial_rotary_factor": 0.5}, nested):
        config.rope_parameters = parameters
        weight = torch.arange(24)
        found = PermuteRope().forward([weight], Context(config, {"i": 1}))[0]
        assert found[:12].tolist() == [0, 2, 4, 1, 3, 5, 6, 7, 8, 9, 10, 11]


def test_deinterleave_swap_halves_reshape_slots():
    weight = torch.arange(12).view(2, 6)
    assert back_and_meta(Deinterleave(dim=-1), [weight])[0][0].tolist() == [0, 2, 4, 1, 3, 5]
    assert back_and_meta(Deinterleave(3, dim=-1), [weight])[0][0].tolist() == [0, 3, 1, 4, 2, 5]
    assert back_and_meta(SwapHalves(head_dim=6), [weight.flatten()])[0].tolist()[:6] == [3, 4, 5, 0, 1, 2]
    assert back_and_meta(Reshape((12,), ("num_key_value_heads", -1)), [torch.randn(12)])[0].shape == (2, 6)
    untouched, transposed = back_and_meta(Slots(None, Transpose()), [torch.randn(2, 3), torch.randn(2, 3)])
    assert untouched.shape == (2, 3) and transposed.shape == (3, 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (7, 7),
        ("q", 72),
        ("head_dim", 12),
        ("q/4", 18),
        ("2 * head_dim + 5", 29),
        (lambda config: config.head_dim - 1, 11),
    ],
)
def test_sizes(text, value):
    assert CTX.size(text) == value


@pytest.mark.parametrize("text", ["q/7", "no_such_field", "head_dim - 1", "layer_types"])
def test_sizes_that_mean_nothing(text):
    with pytest.raises(ValueError, match="size"):
        CTX.size(text)


def test_patterns():
    pattern = Pattern("h.{i}.{q|k}_proj.{w}")
    assert pattern.match("h.10.k_proj.bias") == {"i": 10, "q|k": "k", "weight|bias": "bias"}
    assert pattern.format(pattern.match("h.10.k_proj.bias")) == "h.10.k_proj.bias"
    assert pattern.match("h.01.k_proj.bias") is None and pattern.match("xh.1.k_proj.bias") is None
    assert Pattern("mtp.{*}").match("mtp.0.a.b") == {"*": "0.a.b"}
    assert Pattern("{i}.{i}").match("3.3") and Pattern("{i}.{i}").match("3.4") is None
    assert sorted(["l.10", "l.9", "k"], key=natural_key) == ["k", "l.9", "l.10"]
    with pytest.raises(ValueError, match="placeholder"):
        Pattern("{layer}")


# -- the plan ------------------------------------------------------------------------------------------------------


def plan_both_ways(rules, tensors, config=CONFIG, **family):
    """The plan for `tensors`, after checking that running it and its inverse gives them back."""
    planner = Planner(Family(rules=rules, base_prefix="", **family), config)
    plan = planner.forward({name: tensor.to("meta") for name, tensor in tensors.items()})
    made = {name: tensor for step in plan.steps for name, tensor in step.run(tensors.__getitem__)}
    assert {name: tensor.shape for name, tensor in made.items()} == {n: t.shape for n, t in plan.outputs.items()}
    back = planner.backward(plan.outputs)
    again = {name: tensor for step in back.steps for name, tensor in step.run(made.__getitem__)}
    kept = {name: tensor for name, tensor in tensors.items() if name not in plan.aside}
    assert again.keys() == kept.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in kept.items())
    return plan, made


EXPERTS = [
    Rule(["m.{i}.{e}.g", "m.{i}.{e}.u"], "m.{i}.gate_up", StackExperts()),
    Rule("m.{i}.{e}.d", "m.{i}.down", Stack()),
]


def test_many_to_one_and_back():
    tensors = {f"m.{i}.{e}.{x}": torch.randn(4, 3) for i in range(2) for e in range(11) for x in "gud"}
    _, made = plan_both_ways(EXPERTS, tensors | {"other": torch.randn(2)})
    assert sorted(made) == ["m.0.down", "m.0.gate_up", "m.1.down", "m.1.gate_up", "other"]
    assert torch.equal(made["m.1.gate_up"][10], torch.cat([tensors["m.1.10.g"], tensors["m.1.10.u"]]))


@pytest.mark.parametrize("missing", ["m.1.3.u", "m.0.0.g"])
def test_a_missing_expert_is_named(missing):
    headers = {f"m.{i}.{e}.{x}": torch.empty(4, 3, device="meta") for i in range(2) for e in range(5) for x in "gud"}
    del headers[missing]
    with pytest.raises(ConversionError, match=f"'{missing}' is missing"):
        Planner(Family(rules=EXPERTS, base_prefix=""), CONFIG).forward(headers)


def test_first_rule_wins_where_limits_and_index_translates():
    rules = [
        Rule("l.{i}.g", "l.{i}.linear_g", where=lambda ctx: ctx.layer_entry() == "linear_attention"),
        Rule("l.{i}.g", "l.{i}.full_g"),
        Rule(
            "s.{i}.{s}",
            "t.{i}",
            index=(lambda v: {"i": 2 * v["i"] + v["s"]}, lambda v: {"i": v["i"] // 2, "s": v["i"] % 2}),
        ),
    ]
    tensors = {f"l.{i}.g": torch.randn(2) for i in range(3)} | {
        f"s.{i}.{s}": torch.randn(1) for i in (0, 1) for s in (0, 1)
    }
    _, made = plan_both_ways(rules, tensors)
    assert sorted(made) == ["l.0.full_g", "l.1.linear_g", "l.2.full_g", "t.0", "t.1", "t.2", "t.3"]
    assert torch.equal(made["t.3"], tensors["s.1.1"])


def test_prefixes_are_taken_off_and_put_back():
    tensors = {"text.model.layers.0.ln.weight": torch.randn(2), "text.lm_head.weight": torch.randn(3)}
    rules = renames({"ln": "attn_norm"})
    _, made = plan_both_ways(rules, tensors, prefixes={"text.model.": "model.", "text.lm_head.": "lm_head."})
    assert sorted(made) == ["lm_head.weight", "model.layers.0.attn_norm.weight"]


def test_a_bare_body_gets_its_prefix():
    plan = Planner(Family(rules=renames({"ln": "attn_norm"})), CONFIG).forward(
        {name: torch.empty(2, device="meta") for name in ("layers.0.ln.weight", "norm.weight", "lm_head.weight")}
    )
    assert sorted(plan.outputs) == ["lm_head.weight", "model.layers.0.attn_norm.weight", "model.norm.weight"]


def test_keep_and_drop_are_set_aside():
    rules = [Keep("l.{i}.{*}", where=lambda ctx: ctx.layer >= 3), Drop("l.{i}.inv_freq")]
    tensors = {"l.2.x": torch.randn(1), "l.3.x": torch.randn(1), "l.0.inv_freq": torch.randn(1)}
    plan, made = plan_both_ways(rules, tensors)
    assert (list(made), plan.kept, plan.dropped) == (["l.2.x"], ["l.3.x"], ["l.0.inv_freq"])


def test_errors_name_the_tensor():
    meta = {"a": torch.empty(5, 2, device="meta"), "b": torch.empty(5, 2, device="meta", dtype=torch.half)}
    with pytest.raises(ConversionError, match="'a' .*\\[5, 2\\].* 5 rows do not split"):
        Planner(Family(rules=[Rule("a", ["x", "y"], Split(2, 2))], base_prefix=""), CONFIG).forward(meta)
    with pytest.raises(ConversionError, match="'a' .*and 'b' .*dtype"):
        Planner(Family(rules=[Rule(["a", "b"], "x", Concat(5, 5))], base_prefix=""), CONFIG).forward(meta)
    with pytest.raises(ConversionError, match="'b' would be written twice"):
        Planner(Family(rules=[Rule("a", "b")], base_prefix=""), CONFIG).forward(meta)
    with pytest.raises(ValueError, match="one side only"):
        Rule("a.{i}", "b")


def test_stacking_holds_one_source_tensor_at_a_time():
    alive, most = weakref.WeakSet(), []

    def read(name):
        tensor = torch.zeros(4, 3)
        alive.add(tensor)
        most.append(len(alive))
        return tensor

    slots = [LazyTensors([f"{e}.{x}" for e in range(9)], read) for x in "gu"]
    StackExperts().forward(slots, Context(CONFIG, theirs=2))
    # The one being read and the one the loop still names.
    assert len(most) == 18 and max(most) <= 2
