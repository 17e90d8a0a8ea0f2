"""What `zoo inspect` says of operations, bytes moved, training memory and time."""

from conversion.command import say

from .tables import short, short_bytes


def show_costs(report: dict) -> None:
    """One line for each thing that was asked for."""
    count, cache = report["flops"], report["cache"]
    say(
        f"flops       {short(count['decode'])} per decoded token, {short(count['prompt'])} per token of a prompt, "
        f"{short(count['train'])} per token of training ({short(count['train_checkpointed'])} with checkpointing), "
        f"at {cache['context']} tokens"
    )
    say(
        f"decoding    moves {short_bytes(report['bytes_moved_per_token'])} per token: "
        f"{report['arithmetic_intensity']:.3g} operations for each byte"
    )
    if "training_memory" in report:
        show_training(report["training_memory"])
    if "decoding" in report:
        speed = report["decoding"]
        fits = "fit" if speed["fits"] else "do not fit"
        say(
            f"on {speed['gpu']:<9}at most {speed['tokens_per_second']:.3g} steps of decoding per second; "
            f"weights and cache, {short_bytes(speed['bytes'])}, {fits} one"
        )
    if "training_time" in report:
        show_time(report["training_time"])


def show_training(memory: dict) -> None:
    sizes = {name: short_bytes(size) for name, size in memory.items()}
    say(
        f"training    {sizes['total']} with {memory['batch']} x {memory['context']} tokens: "
        f"weights {sizes['weights']}, gradients {sizes['gradients']}, optimizer {sizes['optimizer']}, "
        f"activations {sizes['activations']}"
    )
    say(
        f"            {sizes['total_checkpointed']} with checkpointing: activations {sizes['activations_checkpointed']}"
    )


def show_time(time: dict) -> None:
    hours = f"{time['hours']:,.0f}" if time["hours"] >= 10 else f"{time['hours']:.2g}"
    say(
        f"time        {hours} hours for {short(time['tokens'])} tokens on {time['gpus']} x {time['gpu']} at "
        f"{time['utilization']:.0%} of peak: {time['flops']:.3g} operations, "
        f"{time['tokens_per_parameter']:.3g} tokens per active parameter (20 is Chinchilla's)"
    )
