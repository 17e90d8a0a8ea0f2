"""What running and training a model cost: operations, bytes moved, time on a GPU."""

from typing import TYPE_CHECKING

from .flops import flops
from .gpus import GPUS
from .measure import body_of, expert_parameters, experts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Share of a GPU's peak that training reaches: Llama 3 405B had 0.38 to 0.43 (arXiv 2407.21783, table 4).
UTILIZATION = 0.4


def compute_costs(model: "PreTrainedModel", report: dict) -> dict:
    """FLOPs of a token, bytes moved for a decoded one, and their ratio; `report`: with the `cache` of a context and a
    batch. Bytes are a step's over its sequences."""
    cache = report["cache"]
    count = flops(model, cache["context"])
    moved = weights_read(model, report, cache["batch"]) + (cache["bytes"] + cache_written(report) * cache["batch"])
    moved /= cache["batch"]
    return {
        "flops": count,
        "bytes_moved_per_token": round(moved),
        "arithmetic_intensity": count["decode"] / moved,
    }


def weights_read(model: "PreTrainedModel", report: dict, batch: int) -> float:
    """Bytes of weights that a step of `batch` tokens reads: all but rows of tables that are looked up, and of routed
    experts those that a token goes to, if each goes to k of E at random."""
    body = body_of(model)
    looked_up = [model.get_input_embeddings(), getattr(body.per_layer_embeddings, "embed_tokens_per_layer", None)]
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is looked_up[0].weight
    numbers = report["parameters"] - report["prediction_parameters"]
    numbers -= sum(table.weight.numel() for table in looked_up[tied:] if table is not None)
    for index, layer in enumerate(body.layers):
        config = model.config.per_layer_config[index]
        for experts in experts_of(layer):
            chosen = config.num_experts_per_tok / config.num_router_outputs
            numbers -= expert_parameters(experts) * config.num_experts * (1 - chosen) ** batch
    return numbers * model.dtype.itemsize


def cache_written(report: dict) -> int:
    """Bytes that a decoded token writes: its keys and values, and every state again."""
    return sum(layer["cache_bytes_per_token"] + layer["state_bytes"] for layer in report["layers"])


def training_time(report: dict, tokens: float, gpu: str, gpus: int = 1, utilization: float = UTILIZATION) -> dict:
    """Hours that training on so many tokens takes, at a share of the peak of `gpus` GPUs."""
    total = report["flops"]["train"] * tokens
    hours = total / (GPUS[gpu].flops * gpus * utilization) / 3600
    return {
        "tokens": tokens,
        "gpu": gpu,
        "gpus": gpus,
        "utilization": utilization,
        "flops": total,
        "hours": hours,
        "tokens_per_parameter": tokens / report["active_parameters"],
    }


def decoding_speed(report: dict, gpu: str) -> dict:
    """Tokens per second of one sequence at the most, where reading memory is all that takes time, and whether weights
    and cache fit one GPU."""
    needed = report["bytes"] + report["cache"]["bytes"]
    per_token = report["bytes_moved_per_token"] * report["cache"]["batch"]
    return {
        "gpu": gpu,
        "tokens_per_second": GPUS[gpu].bandwidth / per_token,
        "bytes": needed,
        "fits": needed <= GPUS[gpu].memory,
    }
