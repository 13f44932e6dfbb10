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
peft=()
for ((i = 1; i < $#; ++i)); do
  if [[ ${!i} == --peft ]]; then next=$((i + 1)) && peft=(--peft "${!next}"); fi
done
asked() { [[ ${#programs[@]} == 0 || " ${programs[*]} " == *" $1 "* ]]; }
if asked mlx_lm; then "$root/build/venvs/mlx_lm/bin/python" "$here/mlx_names.py" "${peft[@]}" 2>/dev/null; fi
# Where setup.sh llama_server has built one, and the golden data has the weights.
server=$root/build/llama_cpp/build/bin/llama-server
if asked llama_cpp && [[ -x $server && -f ${PEFT_GOLDEN:-$root/../shared/golden}/models/consumer-qwen3_moe/model.safetensors ]]; then
  "$root/build/venvs/base/bin/python" "$here/llama_server_check.py" "$server" "${peft[@]}"
fi
exec "$root/build/venvs/base/bin/python" "$here/run.py" "$@"
