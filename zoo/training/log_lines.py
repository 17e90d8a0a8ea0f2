"""The log of a run as lines, where there is no terminal for a bar."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

# Key of the log -> how a line says it.
SAID = {
    "loss": "loss {:.4f}", "eval_loss": "held out {:.4f}", "eval_bits_per_byte": "{:.4f} bits per byte",
    "grad_norm": "gradient {:.3g}", "learning_rate": "rate {:.3g}", "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}", "experts/busiest": "busiest expert {:.2f} x its share", "experts/dead": "{} dead",
}  # fmt: skip


class LogLines(TrainerCallback):
    """One line for each entry of the log."""

    def on_log(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        said = [how.format(logs[key]) for key, how in SAID.items() if logs and key in logs]
        if said and state.is_world_process_zero:
            print(f"step {state.global_step}/{state.max_steps}  " + ", ".join(said), flush=True)
