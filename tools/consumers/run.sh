#!/usr/bin/env bash
# Shows that what `peft convert --for` writes runs in the real programs.
#   tools/consumers/run.sh [llama_cpp] [mlx_lm] [vllm] [peft] [--quick] [--peft BINARY] [--verbose]      default: all programs
# Last line: real programs: N checks, N passed. Needs a built `peft`; the environments are made if missing.
set -euo pipefail
here=$(dirname "$0")
programs=()
for word in "$@"; do
  case $word in llama_cpp | mlx_lm | vllm | peft) programs+=("$word") ;; esac
done
"$here/setup.sh" peft "${programs[@]:-llama_cpp mlx_lm vllm}" # run.py needs numpy and safetensors, which are there
root=$here/../..
if [[ ${#programs[@]} == 0 || " ${programs[*]} " == *" mlx_lm "* ]]; then
  names=("$root/build/venvs/mlx_lm/bin/python" "$here/mlx_names.py")
  for ((i = 1; i < $#; ++i)); do
    if [[ ${!i} == --peft ]]; then next=$((i + 1)) && names+=(--peft "${!next}"); fi
  done
  "${names[@]}" 2>/dev/null
fi
exec "$root/build/venvs/base/bin/python" "$here/run.py" "$@"
