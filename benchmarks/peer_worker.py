"""Run by `benchmarks.peer` in an interpreter with llama-cpp-python: a GGUF file and a request in JSON → JSON.

Nothing of this project is imported here. Times are of the library's own C functions, with the copy of the last logits.
"""

import json
import sys
import time

import llama_cpp
import numpy as np


def measured(work):
    """(seconds by the clock, processor seconds of all threads)."""
    started, spent = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - spent


def main(path, request):
    tokens, threads = request["tokens"], request["threads"]
    room = {"n_ctx": len(tokens) + 64, "n_batch": request["batch"], "n_ubatch": request["batch"]}
    counts = {"n_threads": threads, "n_threads_batch": threads}
    model = llama_cpp.Llama(path, **room, **counts, flash_attn=True, verbose=False)

    def best():
        logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())

    found = {"version": llama_cpp.__version__, "decode": {}, "prompt": {}}
    # The same tokens as the others' greedy ones, one after the other: how many it would have chosen itself.
    prompt, chosen = request["prompt"], request["chosen"]
    model.eval(prompt)
    agreed = 0
    for token in chosen:
        agreed += best() == token
        model.eval([token])
    found |= {"agreed": agreed, "of": len(chosen)}
    for length in request["prompts"]:
        times = []
        # Long prompts once: they warm up by themselves.
        for _ in range(request["rounds"] if length <= request["batch"] else 1):
            model.reset()
            times.append(measured(lambda length=length: model.eval(tokens[:length])))
        found["prompt"][length] = [sorted(column)[len(times) // 2] for column in zip(*times, strict=True)]
    model.reset()
    for context in request["contexts"]:
        model.eval(tokens[model.n_tokens : context])
        times = []
        for _ in range(request["rounds"] + 1):
            model.n_tokens = context
            # Cells behind the context are given back when the next token is evaluated.
            times.append(measured(lambda: [model.eval([1]) for _ in range(request["run"])]))
        each = [sorted(column)[len(times) // 2] / request["run"] for column in zip(*times[1:], strict=True)]
        found["decode"][context] = each
        model.n_tokens = context
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
