"""The loop of a process that runs adapters in one program: a job per line on stdin, an answer per line on stdout. Imported first.

A job is a JSON object. `adapter` is what to load (null: the model alone), `model` the model, `ids` lists of token ids, `out` the
file for the answer: tensors `logits.0`, `logits.1`, ... of float32. The answer is {"refused": null, or what the program said}.
"""

import json
import os
import sys

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # programs print: what they say goes to stderr


def serve(answer):
    """`answer(job)` gives arrays by name; what it throws is what the program said against the adapter."""
    from safetensors.numpy import save_file

    for line in sys.stdin:
        job = json.loads(line)
        refused = None
        try:
            save_file(answer(job), job["out"])
        except Exception as error:  # noqa: BLE001: whatever the program throws is its answer
            refused = f"{type(error).__name__}: {error}"[:400]
        answers.write(json.dumps({"refused": refused}) + "\n")
        answers.flush()
