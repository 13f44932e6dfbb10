"""What a benchmark measured, for the page that report.py makes; results.h does the same for C++."""
import json
import os


def record(claim, what, against, ours, theirs, unit, ratio):
    """Appends a line of JSON to the file that $PEFT_BENCH_RESULTS names; record.py sets it. Without it nothing happens."""
    path = os.environ.get("PEFT_BENCH_RESULTS")
    if path:
        with open(path, "a") as file:
            file.write(json.dumps({"claim": claim, "what": what, "against": against, "ours": ours, "theirs": theirs,
                                   "unit": unit, "ratio": ratio}) + "\n")
