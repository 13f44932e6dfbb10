#!/usr/bin/env bash
# The commands of docs/merge_on_many_machines.md, with processes in place of machines.
#
#     tools/test_parts.sh PEFT BASE ADAPTER [N]
set -euo pipefail
peft=$1 base=$2 adapter=$3 n=${4:-4}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

merge() { "$peft" merge --base "$base" --adapter "$adapter" --out "$1" --quiet "${@:2}"; }
same() { diff -r "$work/single" "$1" && [ ! -e "$1.partial-peft" ] && echo "ok: $2"; }

merge "$work/single" >/dev/null

# A job array: SLURM_ARRAY_TASK_ID counts from 1, JOB_COMPLETION_INDEX from 0.
for SLURM_ARRAY_TASK_ID in $(seq "$n"); do
  merge "$work/slurm" --part "$SLURM_ARRAY_TASK_ID/$n" --threads 1 >/dev/null &
done
wait
[ ! -e "$work/slurm" ]
merge "$work/slurm" --finish >/dev/null
same "$work/slurm" "$n parts at once, as a Slurm array"

# An indexed job whose pods are killed at any time and started again.
pod() {
  for delay in 0.01 0.03 0.1 none; do
    # exec: the signal must reach peft itself
    (exec "$peft" merge --base "$base" --adapter "$adapter" --out "$work/k8s" --quiet --part "$(($1 + 1))/$n" --threads 1) \
      >/dev/null 2>&1 &
    pid=$!
    [ "$delay" = none ] || { sleep "$delay"; kill -9 "$pid" 2>/dev/null || true; }
    if wait "$pid" 2>/dev/null; then return 0; fi
  done
  return 1
}
pods=()
for JOB_COMPLETION_INDEX in $(seq 0 $((n - 1))); do
  pod "$JOB_COMPLETION_INDEX" &
  pods+=($!)
done
for pid in "${pods[@]}"; do wait "$pid"; done
merge "$work/k8s" --finish >/dev/null
same "$work/k8s" "$n indexed pods, killed and started again"

# A part is missing.
if [ "$n" -gt 1 ]; then
  merge "$work/missing" --part "1/$n" >/dev/null
  code=0
  merge "$work/missing" --finish >"$work/log" 2>&1 || code=$?
  if [ "$code" = 1 ] && grep -q RS_PARTS "$work/log" && [ ! -e "$work/missing" ]; then
    echo "ok: a missing part is named"
  else
    # A model of one file is whole with its one part.
    [ "$code" = 0 ] && same "$work/missing" "the model has one file: one part is all of it"
  fi
fi
