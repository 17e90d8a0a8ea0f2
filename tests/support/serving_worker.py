"""FOLDER REQUEST.json: greedy tokens from vLLM for each prompt, in a process of its own, by the folder's own code."""

import json
import sys
from pathlib import Path


def main(folder, request):
    from vllm import LLM, SamplingParams

    wanted = json.loads(Path(request).read_text())
    options = {"model_impl": "transformers", "trust_remote_code": True, "dtype": "float32"} | wanted["options"]
    engine = LLM(folder, max_model_len=128, skip_tokenizer_init=True, **options)
    prompts = [{"prompt_token_ids": prompt} for prompt in wanted["prompts"]]
    greedy = SamplingParams(temperature=0, max_tokens=wanted["new_tokens"], ignore_eos=True, detokenize=False)
    found = [list(answer.outputs[0].token_ids) for answer in engine.generate(prompts, greedy)]
    Path(request).with_suffix(".answer").write_text(json.dumps(found))
    if "modeling_zoo" in sys.modules:
        raise SystemExit("the installed package ran, not the folder's code")


if __name__ == "__main__":
    main(*sys.argv[1:])
