"""What one decoded token asks of the host: waits for the device, launches, the time to issue them."""

import os
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from .harness import HALF, Item, Run
from .mixers import chosen, random_model
from .models import NAMES, SIDES, decoder, kept_model, new_cache

HERE = str(Path(__file__).parent)

# -- waits -------------------------------------------------------------------------------------------------------------


def wait_items(run: Run) -> list[Item]:
    return [
        Item(name, lambda name=name, fields=fields: waits_of_mixer(run, name, fields), needs=2)
        for name, fields in chosen(run.options.mixers).items()
    ]


def waits_of_mixer(run: Run, name: str, fields: dict):
    """Rows for the caches and masks where a token makes the host wait, and where; one for all others.

    None is the aim; beside a 2-D mask transformers' own builder asks once for each kind of mask.
    """
    model, quiet = random_model(fields).to(run.device, HALF), 0
    for kind in ("dynamic", "static"):
        for masked in (False, True):
            found = waits(run, model, kind, masked)
            if found:
                values = {"waits": len(found), "at": sorted(set(found))[:4]}
                yield f"{name}, {kind}{', mask' if masked else ''}", values | ({} if masked else {"met": False})
            quiet += not found
    yield f"{name}, {quiet} of 4 ways", {"waits": 0}


@torch.no_grad()
def waits(run: Run, model, kind: str, masked: bool) -> list[str]:
    """Places in the code at which the host waited for the device within one token."""
    cache = new_cache("zoo", model, kind, 64)
    tokens = torch.randint(3, 128, (2, 24), device=run.device)
    masks = [torch.ones(2, 20 + i, dtype=torch.long, device=run.device) if masked else None for i in range(3)]
    model(tokens[:, :20], attention_mask=masks[0], past_key_values=cache)
    model(tokens[:, 20:21], attention_mask=masks[1], past_key_values=cache)
    run.wait()
    return watched(run, lambda: model(tokens[:, 21:22], attention_mask=masks[2], past_key_values=cache))


def watched(run: Run, work: Callable[[], object]) -> list[str]:
    """Where `work()` waits, as torch's own debug mode says; on a CPU nowhere."""
    if not run.cuda:
        work()
        return []
    found = []

    def note(message, *_, **__):
        if "synchron" in str(message):
            found.append(place(traceback.extract_stack()))

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return found


def place(frames: list[traceback.FrameSummary]) -> str:
    """The innermost line of zoo and, where that called another library than torch, the innermost of that."""
    beyond = ("/site-packages/torch/", f"{os.sep}warnings.py", HERE)
    frames = [frame for frame in frames if not any(part in frame.filename for part in beyond)]
    ours = [frame for frame in frames if "modeling_zoo" in frame.filename][-1:]
    named = dict.fromkeys(f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in (*ours, *frames[-1:]))
    return " > ".join(named)


# -- launches ----------------------------------------------------------------------------------------------------------


def launch_items(run: Run) -> list[Item]:
    return [
        Item(f"{name} {side}", lambda name=name, side=side: launches(run, name, side))
        for name in NAMES
        for side in SIDES
    ]


def launches(run: Run, name: str, side: str) -> dict:
    """Kernels, launches, copies and aten operations of one token, and the microseconds the host needs to issue it."""
    from torch.profiler import ProfilerActivity, profile

    step = decoder(run, side, kept_model(run, side, name), "dynamic", 64 if run.tiny else 4096, 1)
    for _ in range(3):
        step()
    run.wait()
    begun = time.perf_counter()
    for _ in range(5):
        step()
    issued = (time.perf_counter() - begun) / 5
    run.wait()
    with profile(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if run.cuda else [])) as profiler:
        step()
        run.wait()
    events = profiler.events()
    names = [event.name for event in events]
    on_device = [event for event in events if str(event.device_type).endswith("CUDA")]
    return {
        "launches": sum("LaunchKernel" in text or text == "cudaGraphLaunch" for text in names),
        "kernels": len(on_device),
        "device_us": float(sum(event.device_time for event in on_device)),
        "issued_us": issued * 1e6,
        "operations": sum(text.startswith("aten::") for text in names),
        "copies": sum("Memcpy" in text for text in names),
    }
