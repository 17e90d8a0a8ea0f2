"""A decoded token as one graph: captured by hand, and by torch.compile, of every mixer and of the published shapes."""

import time
from collections.abc import Callable

import torch

from .correct import CACHE, LENGTH, LIMITS, PROMPT, limit_of, reference, tokens_and_mask
from .harness import HALF, Item, Run, aside, label, relative_error, seconds
from .mixers import chosen, random_model
from .models import SIDES, all_heads, decoder, new_cache, one_layer

COMPILED = ("mla", "gqa", "sliding", "gdn", "moe", "dsa")
SHAPES = ((32768, 1), (131072, 1), (8192, 8))
DECODED = LENGTH - PROMPT


# -- captured ----------------------------------------------------------------------------------------------------------


def capture_items(run: Run) -> list[Item]:
    return [
        Item(name, lambda fields=fields: captured_steps(run, fields), needs=2)
        for name, fields in chosen(run.options.mixers).items()
    ]


@torch.no_grad()
def captured_steps(run: Run, fields: dict) -> dict:
    """Whether a step over the static cache can be captured in a CUDA graph, and replays what the steps give."""
    model = random_model(fields).to(run.device)
    tokens = tokens_and_mask()[0].to(run.device)
    cache = prompted(model, tokens)
    expected = [model(tokens[:, i : i + 1], past_key_values=cache).logits.clone() for i in range(PROMPT, LENGTH)]
    if not run.cuda:
        return {"captured": "not on a CPU", "steps": len(expected)}
    cache, token = prompted(model, tokens), tokens[:, PROMPT : PROMPT + 1].clone()
    position = torch.full((2, 1), PROMPT, device=run.device)

    def step():
        return model(token, position_ids=position, past_key_values=cache).logits

    def move_to(i):
        token.copy_(tokens[:, i : i + 1])
        position.fill_(i)

    # The first token warms up and counts; recording runs nothing.
    found = [aside(step).clone()]
    graph = torch.cuda.CUDAGraph()
    move_to(PROMPT + 1)
    with torch.cuda.graph(graph):
        logits = step()
    for i in range(PROMPT + 1, LENGTH):
        move_to(i)
        graph.replay()
        found.append(logits.clone())
    error = relative_error(torch.cat(found, 1), torch.cat(expected, 1))
    return {"captured": "yes", "difference": error, "met": error < LIMITS[torch.float32]}


def prompted(model, tokens: torch.Tensor):
    """A static cache that has read the prompt."""
    cache = new_cache("zoo", model, "static", CACHE)
    model(tokens[:, :PROMPT], past_key_values=cache)
    return cache


# -- compiled ----------------------------------------------------------------------------------------------------------


def compile_items(run: Run) -> list[Item]:
    return [
        Item(f"{name}, {str(dtype)[6:]}", lambda case=(name, fields, dtype): compiled_steps(run, *case),
             needs=5 if run.cuda else 1)
        for dtype in (torch.float32, HALF) for name, fields in chosen(run.options.mixers).items()
    ]  # fmt: skip


@torch.no_grad()
def compiled_steps(run: Run, name: str, fields: dict, dtype: torch.dtype) -> dict:
    """Decoding over the static cache by torch.compile against the CPU: the error, graphs, breaks, recordings."""
    expected, weights = reference(fields, padded=False)
    model = random_model(fields)
    model.load_state_dict(weights)
    model.to(run.device, dtype)
    if run.cuda and "num_experts" in fields:
        model.set_experts_implementation("batched_mm")  # as generate does while it decodes
    tokens = tokens_and_mask()[0].to(run.device)
    cache = prompted(model, tokens)
    forward, counted = compiled_forward(run, model)
    found, first = [], None
    for i in range(PROMPT, LENGTH):
        position = torch.full((2, 1), i, device=run.device)
        token = tokens[:, i : i + 1].clone()
        if run.cuda:
            torch.compiler.cudagraph_mark_step_begin()
        found.append(forward(input_ids=token, position_ids=position, past_key_values=cache).logits.clone())
        # A graph is compiled, warmed up and recorded by then: all that comes later is a repetition.
        first = counted() if i == PROMPT + 3 else first
    error = relative_error(torch.cat(found, 1), expected)
    last = counted()
    later = {f"more_{key}_later": last[key] - first[key] for key in ("graphs", "recordings")}
    alone = first["graphs"] == 1 and not first["cudagraph_skips"] and not any(later.values())
    met = error < limit_of(name, dtype) and alone
    return {"difference": error, **first, **later, "met": met}


def compiled_forward(run: Run, model) -> tuple[Callable, Callable[[], dict]]:
    """The forward as torch.compile makes it, in CUDA graphs on a GPU, and what was counted so far."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    options = {"mode": "reduce-overhead"} if run.cuda else {"backend": "eager"}

    def counted():
        breaks = [f"{count}× {reason.splitlines()[0][:90]}" for reason, count in counters["graph_break"].items()]
        return {
            "graphs": counters["stats"]["unique_graphs"],
            "recordings": recordings(),
            "breaks": breaks[:3],
            "cudagraph_skips": counters["inductor"].get("cudagraph_skips", 0),
        }

    return torch.compile(model.forward, **options), counted


def recordings() -> int:
    """CUDA graphs that torch.compile has recorded in this process since its last reset, as far as it tells."""

    def count(nodes_of):
        nodes = [node for several in nodes_of.values() for node in several]
        return len(nodes) + sum(count(node.children) for node in nodes)

    try:
        from torch._inductor.cudagraph_trees import get_manager

        manager = get_manager(torch.cuda.current_device(), create_if_none_exists=False)
        return 0 if manager is None else count(manager.roots)
    except Exception:  # private names of torch, and no CUDA
        return 0


def speed_items(run: Run) -> list[Item]:
    """Time of one compiled token of the published shapes, both sides."""
    shapes = ((64, 1),) if run.tiny else SHAPES
    return [
        Item(f"{name} {label(context)}×{batch} {side}",
             lambda case=(side, name, context, batch): compiled_speed(run, *case), needs=1 if run.tiny else 12)
        for context, batch in shapes for name in COMPILED for side in reversed(SIDES)
    ]  # fmt: skip


def warm_items(run: Run) -> list[Item]:
    """The first shapes of `speed_items` compiled by many processes at once, so that what is timed comes from disk."""
    case = SHAPES[0]
    return [
        Item(f"{name} {side}", lambda case=(side, name, *case): compiled_speed(run, *case) and None, needs=5)
        for name in COMPILED for side in reversed(SIDES) if run.cuda
    ]  # fmt: skip


def compiled_speed(run: Run, side: str, name: str, context: int, batch: int) -> dict:
    """Microseconds of a token, graphs, breaks, and the time to compile."""
    model = one_layer(run, side, name, **all_heads(run, name))
    if name in ("moe", "mla", "dsa") and run.cuda:
        model.set_experts_implementation("batched_mm")  # as generate does while it decodes
    forward, counted = compiled_forward(run, model)
    step = decoder(run, side, model, "static", context, batch, forward)
    begun = time.time()
    for _ in range(4):
        if run.cuda:
            torch.compiler.cudagraph_mark_step_begin()
        step()
    run.wait()
    built, first = time.time() - begun, counted()
    taken = seconds(run, step, 9)
    later = counted()
    return {
        "model": name, "context": context, "batch": batch, "side": side, "us": taken * 1e6, **first,
        "more_graphs_later": later["graphs"] - first["graphs"],
        "more_recordings_later": later["recordings"] - first["recordings"], "seconds_to_compile": built,
    }  # fmt: skip
