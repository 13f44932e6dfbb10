#!/usr/bin/env bash
# The main job on bundled adapters: what is it, convert it to the other side of transformers 5, prove it, and back.
#
#     tools/demo.sh [path of peft]
set -euo pipefail
cd "$(dirname "$0")/.."

peft=${1:-build/release/peft}
golden=tests/golden
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
bold='' plain=''
if [[ -t 1 && -z ${NO_COLOR:-} && ${TERM:-dumb} != dumb ]]; then bold=$'\033[1m' plain=$'\033[0m'; fi

say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
run() {
  printf '\n$ peft %s\n' "${*//$out/OUT}"
  "$peft" "$@" | sed "s|$out|OUT|g"
}

for case in mixtral-plain qwen3_moe-plain; do
  v4=$golden/convert/$case/adapter
  model=$golden/models/${case%-plain}-v4

  say "== $case: an adapter trained with transformers 4, one LoRA pair per expert"
  run inspect "$v4" --base "$model"

  say "-- to the fused layout of transformers 5, and proof that it is the same function"
  run convert "$v4" --to peft-fused --out "$out/$case-v5" --base "$model"
  run verify "$v4" "$out/$case-v5" --base "$model"

  say "-- and back: the same bytes"
  run convert "$out/$case-v5" --to peft-per-expert --out "$out/$case-v4" --base "$model"
  run verify "$v4" "$out/$case-v4" --base "$model" --tolerance exact
  cmp "$v4/adapter_model.safetensors" "$out/$case-v4/adapter_model.safetensors"
  echo "adapter_model.safetensors: identical to the original, byte for byte"
done
say "demo: done"
