#!/usr/bin/env python3
"""Stands for peft-torch in tests: `logits` of the toy model, with an adapter whose scale is lora_alpha / r / 2."""
import json
import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from toy import VOCABULARY, logits

arguments = [a for a in sys.argv[2:] if a != "--overwrite"]
given = dict(zip(arguments[::2], arguments[1::2]))
if sys.argv[1] != "logits" or "--base" not in given:
    sys.exit("not like this")
ids = [int(x) for x in given["--ids"].split(",")]
scale = 0.0
if "--adapter" in given:
    config = json.loads((pathlib.Path(given["--adapter"]) / "adapter_config.json").read_text())
    if config["r"] == 13:
        sys.exit("error[LO_RANK] an adapter of another model")
    scale = config["lora_alpha"] / config["r"] / 2
values = [x for row in logits(ids, scale) for x in row]
header = json.dumps({"logits": {"dtype": "F32", "shape": [1, len(ids), VOCABULARY], "data_offsets": [0, 4 * len(values)]}}).encode()
header += b" " * (-len(header) % 8)
pathlib.Path(given["--out"]).write_bytes(struct.pack("<Q", len(header)) + header + struct.pack(f"<{len(values)}f", *values))
