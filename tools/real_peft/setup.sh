#!/usr/bin/env bash
# Makes the two environments of the real PEFT under build/venvs: `new` (transformers v5) and `old` (transformers v4).
# Does nothing where they are there already. torch (700 MB) is installed once, in `base`; both see it through a .pth file.
#
#     tools/real_peft/setup.sh [base]      base: only torch and tokenizers, which the runtime is built with and uses
set -euo pipefail
cd "$(dirname "$0")/../.."

venvs=build/venvs
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || python=python3

# What an environment must hold; the text is also its stamp: another version here makes it again.
declare -A packages=(
  [base]="torch==2.13.0+cpu tokenizers==0.23.3 safetensors==0.8.0 numpy psutil pyyaml tqdm regex packaging requests"
  [new]="peft==0.21.2 transformers==5.24.0 safetensors==0.8.0"
  [old]="peft==0.18.1 transformers==4.57.6 safetensors==0.8.0"
)

make_venv() {  # name
  local name=$1 dir=$venvs/$1
  if [[ -f $dir/stamp && $(<"$dir/stamp") == "${packages[base]} ${packages[$name]}" ]]; then return; fi
  echo "real peft: installing $dir (${packages[$name]})"
  rm -rf "$dir"
  "$python" -m venv "$dir"
  if [[ $name != base ]]; then
    local from into
    from=$("$venvs/base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    into=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$from" >"$into/base_environment.pth"
  fi
  # shellcheck disable=SC2086  # a list of requirements
  "$dir/bin/python" -m pip install -qq --no-warn-script-location --disable-pip-version-check \
    ${PEFT_TORCH_INDEX:+--extra-index-url "$PEFT_TORCH_INDEX"} ${packages[$name]}
  echo "${packages[base]} ${packages[$name]}" >"$dir/stamp"
}

mkdir -p "$venvs"
make_venv base
if [[ ${1:-} == base ]]; then exit; fi
make_venv new &
new=$!
make_venv old
wait "$new"
