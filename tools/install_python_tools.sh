#!/usr/bin/env bash
# Gets what the Python package is built and tested with (nanobind, pytest and others) in a Python environment of our own:
# build/venvs/python. Nothing is done when PEFT_BUILD_PYTHON is OFF.
#
#     tools/install_python_tools.sh          exit code 0 also when they cannot be had: then the module is not built, unless
#                                            PEFT_BUILD_PYTHON is ON
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=${PEFT_BUILD_PYTHON:-AUTO}
[[ $wanted != OFF ]] || exit 0

if tools/install_dependencies.sh python && tools/real_peft/setup.sh python; then exit 0; fi
echo "nanobind could not be installed with pip; is there a network?" >&2
if [[ $wanted == ON ]]; then exit 1; fi
echo "The Python module is not built (docs/python.md)." >&2
