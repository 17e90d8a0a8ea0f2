"""Let a small model learn from a large one on what the small one writes: TRL's DistillationTrainer.

    python examples/finetune_distill.py
    python examples/finetune_distill.py --layers 2 --steps 100

The student is the storyteller with fewer layers. It writes stories, and the teacher's distribution at each of their
tokens is what it learns (Agarwal et al. 2024). A student of another architecture is made by `zoo surgery`, which has a
distillation of its own, layer by layer too (examples/surgery.md).
"""

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from fine_tuning import HELD_OUT, converted, hand_back, parser, positive, run
from finetune_grpo import PROMPTS
from transformers import AutoModelForCausalLM, PrinterCallback
from trl import DistillationConfig, DistillationTrainer


@torch.no_grad()
def divergence(teacher, student, tokens) -> float:
    """KL(teacher || student) on stories of the teacher, in nats per token."""
    theirs, ours = (model.eval()(tokens).logits.log_softmax(-1) for model in (teacher, student))
    return (theirs.exp() * (theirs - ours)).sum(-1).mean().item()


def main() -> None:
    made = parser(__doc__, "finetune_distill", steps=40, rate=3e-3)
    made.add_argument("--layers", type=positive, default=3, help="of the student")
    options = made.parse_args()
    disable_progress_bar()
    base, tokenizer = converted(options)
    teacher = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)
    layers = teacher.config.num_hidden_layers
    if options.layers >= layers:
        raise ValueError(f"--layers {options.layers}: the teacher has {layers} layers; give fewer.")
    student = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True, num_hidden_layers=options.layers)
    begin = torch.full((HELD_OUT, 1), tokenizer.bos_token_id)
    stories = teacher.generate(begin, attention_mask=torch.ones_like(begin), max_new_tokens=63, do_sample=True)
    before = divergence(teacher, student, stories)

    arguments = DistillationConfig(
        output_dir=str(options.output / "trainer"), max_steps=options.steps, per_device_train_batch_size=16,
        max_completion_length=48, learning_rate=options.rate, beta=0.0, save_strategy="no", report_to="none",
        disable_tqdm=True, bf16=False,
    )  # fmt: skip
    trainer = DistillationTrainer(
        model=student, teacher_model=teacher, args=arguments, train_dataset=Dataset.from_list(PROMPTS),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    print(f"held-out divergence {before:.3f} -> {divergence(teacher, student, stories):.3f} nats per token")
    hand_back(student, tokenizer, options)


if __name__ == "__main__":
    run(main)
