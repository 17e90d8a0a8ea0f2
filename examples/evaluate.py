"""lm-eval's `hf` model on a zoo folder and a task of one's own: evaluate.py FOLDER (pip install lm-eval).

Four beginnings of a story, each with its continuation and two others; the model should find its own the most likely.
The command line says the same with `lm_eval --model hf --model_args pretrained=FOLDER,trust_remote_code=True`.
"""

import json
import tempfile
from pathlib import Path

from command_line import model, parser, run

QUESTIONS = [
    ("Once upon a time, there was a little", [" girl named Lily.", " quarterly report.", " 17 percent."], 0),
    ("She loved to play outside in the", [" because of it on.", " park.", " seventh amendment."], 1),
    ("One day, Lily's mom said,", [' "Let\'s go to the park."', " although whereas.", " the of and to."], 0),
    ("They were very happy and", [" tax the bond yield.", " played together all day.", " unless circuit."], 1),
]


def write_task(folder: Path) -> dict:
    """The questions as a file, and the task that reads it."""
    rows = [{"prompt": prompt, "choices": choices, "answer": right} for prompt, choices, right in QUESTIONS]
    path = folder / "questions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return {
        "task": "story_endings",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("folder", type=model)
    evaluate(options.parse_args().folder)


def evaluate(folder: str) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    evaluated = HFLM(pretrained=folder, trust_remote_code=True, device="cpu", dtype="float32", batch_size=2)
    with tempfile.TemporaryDirectory() as written:
        results = simple_evaluate(
            model=evaluated, tasks=[write_task(Path(written))], bootstrap_iters=0, log_samples=True
        )
    samples = results["samples"]["story_endings"]
    likelihoods = [[answer[0][0] for answer in sample["resps"]] for sample in samples]
    print(json.dumps({"acc": results["results"]["story_endings"]["acc,none"], "log_likelihoods": likelihoods}))


if __name__ == "__main__":
    run(main)
