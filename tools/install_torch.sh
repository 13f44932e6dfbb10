#!/usr/bin/env bash
# Gets libtorch for the runtime, as the package torch of a Python environment of our own: build/venvs/base. Nothing is
# done when PEFT_WITH_TORCH is OFF, or a libtorch is named already: PEFT_TORCH_PYTHON (a Python that has torch), or
# CMAKE_PREFIX_PATH or Torch_DIR (a libtorch folder).
#
#     tools/install_torch.sh          exit code 0 also when torch cannot be had: then peft is built without the runtime,
#                                     unless PEFT_WITH_TORCH is ON
#
# Only the CPU build of torch is ever fetched (about 190 MB; the CUDA build would be gigabytes). Where the package index
# does not have it, PEFT_TORCH_INDEX names one that does: the CPU index of PyTorch.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=${PEFT_WITH_TORCH:-AUTO}
[[ $wanted != OFF ]] || exit 0
[[ -z ${PEFT_TORCH_PYTHON:-}${CMAKE_PREFIX_PATH:-}${Torch_DIR:-} ]] || exit 0

fail() {
  echo "$1" >&2
  if [[ $wanted == ON ]]; then exit 1; fi
  echo "peft is built without the runtime (peft logits, generate, params). docs/building.md says how to get it." >&2
  exit 0
}

tools/install_dependencies.sh python || fail "python3-venv is missing, and cannot be installed"
tools/real_peft/setup.sh base || fail "torch for the CPU could not be installed with pip; is there a network? PEFT_TORCH_INDEX can name another package index"
