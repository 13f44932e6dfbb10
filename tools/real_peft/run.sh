#!/usr/bin/env bash
# Proves with the real PEFT that converted adapters load there and give the logits of their source.
#   tools/real_peft/run.sh [--quick] [--peft BINARY] [--verbose]
# Last line: real peft: N checks, N passed. Needs a built `peft`; the Python environments are made if missing.
set -euo pipefail
here=$(dirname "$0")
"$here/setup.sh"
exec "$here/../../build/venvs/base/bin/python" "$here/run.py" "$@"
