#!/usr/bin/env bash
# Builds the Python package peft-cpp, and tests it as a user gets it: in fresh virtual environments, without a compiler.
#
#     tools/build_wheel.sh [--runtime] [PYTHON ...]      default: python3.10, 3.11, 3.12 (its wheel serves 3.13, too) and 3.13
#
# --runtime: also peft-cpp-runtime, for the Python of build/venvs/python, and a test of both as `pip install` brings them.
# Wheels and the sdist lie in build/wheel/dist. PEFT_WHEEL_TESTS=fast leaves out what the tests of the build tree show as
# well (the golden tests, the stress test), and the wheel that is built from the sdist.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/build/wheel
fast=$([[ ${PEFT_WHEEL_TESTS:-} != fast ]] || echo yes)
runtime=
if [[ ${1:-} == --runtime ]]; then runtime=yes; shift; fi
pythons=("$@")
[[ ${#pythons[@]} -gt 0 ]] || pythons=(python3.10 python3.11 python3.12 python3.13)

# With the compiler, the flags and the depth of folders of build/release, ccache has the objects of the core already.
export CC=cc CXX=c++ CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
export CCACHE_BASEDIR=$PWD CCACHE_SLOPPINESS=pch_defines,time_macros CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)}

# A Python of pyenv is found by its version, whatever pyenv has chosen.
find_python() {
  local version=${1#python} found
  for found in "$HOME/.pyenv/versions/$version".*/bin/python "$(command -v "$1" || true)"; do
    if [[ -x $found ]] && "$found" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
      echo "$found"
      return
    fi
  done
  echo "There is no $1: install it, or name the Pythons to build for" >&2
  return 1
}

quietly() {  # the output is shown only when the command fails
  local log=$root/log
  "$@" >"$log" 2>&1 || { cat "$log" >&2; return 1; }
}

version_of() { "$1" -c "import sys; print('%d.%d' % sys.version_info[:2])"; }

# The environment that wheels for a Python are built in. That of the build tree serves its own Python.
build_environment() {
  local env=$PWD/build/venvs/python
  if [[ $(version_of "$env/bin/python") != "$(version_of "$1")" ]]; then
    env=$root/build-$(version_of "$1")
    if [[ ! -x $env/bin/scikit-build-core ]]; then
      quietly "$1" -m venv "$env"
      quietly "$env/bin/pip" install nanobind==3.1.0 scikit-build-core==1.1.2
    fi
  fi
  echo "$env"
}

build_wheel() {  # FOLDER NAME-OF-BUILD-FOLDER PYTHON OUTPUT
  local env
  env=$(build_environment "$3")
  (cd "$1" && quietly "$env/bin/pip" wheel . --no-deps --no-build-isolation -w "$4" -C build-dir="build/$2" \
    -C cmake.define.PEFT_WERROR=ON)
}

build_wheels() {
  local name python version
  for name in "${pythons[@]}"; do
    python=$(find_python "$name")
    version=$(version_of "$python")
    # From 3.12 on there is one stable interface.
    if [[ ${version#3.} -gt 12 ]] && ls "$root"/raw/*abi3*.whl >/dev/null 2>&1; then continue; fi
    echo "== wheel for $name"
    build_wheel . "wheel-$version" "$python" "$root/raw"
  done
  for wheel in "$root"/raw/*.whl; do
    PATH=$tool/bin:$PATH quietly "$tool/bin/auditwheel" repair "$wheel" --plat auto -w "$root/dist"
  done
  quietly "$tool/bin/python" -m build --sdist --no-isolation -o "$root/dist"
  quietly "$tool/bin/twine" check --strict "$root"/dist/*
}

# The sdist alone, in a folder of its own.
build_from_sdist() {
  echo "== wheel from the sdist"
  rm -rf "$root/sdist"
  mkdir "$root/sdist"
  tar -xzf "$root"/dist/*.tar.gz -C "$root/sdist" --strip-components=1
  CCACHE_BASEDIR=$root/sdist build_wheel "$root/sdist" wheel "$(find_python "${pythons[0]}")" "$root/sdist/dist"
  "$tool/bin/python" - "$root"/sdist/dist/*.whl <<'PYTHON'
import sys, zipfile
names = zipfile.ZipFile(sys.argv[1]).namelist()
assert any("/_core." in name for name in names) and "peft_cpp/py.typed" in names, names
PYTHON
}

# The tests see the installed package alone: no compiler, none of the build's variables, and the repository's golden files
# by path.
test_wheel() {
  local name=$1 python env tests
  python=$(find_python "$name")
  env=$root/env-$name
  rm -rf "$env" "$env.run"
  quietly "$python" -m venv "$env"
  quietly "$env/bin/pip" install --no-index --find-links "$root/dist" --no-deps peft-cpp
  quietly "$env/bin/python" -c "import sys, peft_cpp; assert 'numpy' not in sys.modules; print(peft_cpp.__version__)"
  [[ $("$env/bin/peft" --version) == "peft $("$env/bin/python" -c 'import peft_cpp; print(peft_cpp.__version__)')" ]]
  quietly "$env/bin/pip" install numpy ml_dtypes pytest mypy
  mkdir "$env.run"
  cp -r python/tests "$env.run/tests"
  tests=(tests)
  [[ -z $fast ]] || tests+=(--ignore=tests/test_golden.py --ignore=tests/test_threads.py)
  echo "== tests on $name"
  (cd "$env.run" && env -i HOME="$env" PATH="$env/bin" LANG=C.UTF-8 PEFT_GOLDEN="$OLDPWD/tests/golden" PEFT_DOCS="$OLDPWD/docs" \
    "$env/bin/python" -m pytest -q -p no:cacheprovider "${tests[@]}")
  (cd "$env.run" && "$env/bin/mypy" --strict tests/user_program.py)
}

# The libraries of torch stay outside: the wheel finds them beside itself, in the torch that is installed.
runtime_wheel() {
  local env=$root/env-runtime wheel python=$tool/bin/python
  echo "== wheel of peft-cpp-runtime"
  tools/install_torch.sh
  (cd python/runtime && quietly "$tool/bin/pip" wheel . --no-deps --no-build-isolation -w "$root/raw-runtime" \
    -C build-dir="$OLDPWD/build/wheel-runtime" -C cmake.define.PEFT_WERROR=ON)
  for wheel in "$root"/raw-runtime/*.whl; do
    PATH=$tool/bin:$PATH quietly "$tool/bin/auditwheel" repair "$wheel" --plat auto -w "$root/dist" \
      --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libgomp*'
  done
  rm -rf "$env" "$env.run"
  quietly "$python" -m venv "$env"
  quietly "$env/bin/pip" install --find-links "$root/dist" ${PEFT_TORCH_INDEX:+--extra-index-url "$PEFT_TORCH_INDEX"} \
    "peft-cpp[runtime]" torch==2.13.0+cpu numpy safetensors pytest
  mkdir "$env.run"
  cp -r python/tests "$env.run/tests"
  (cd "$env.run" && env -i HOME="$env" PATH="$env/bin" LANG=C.UTF-8 PEFT_GOLDEN="$OLDPWD/tests/golden" \
    "$env/bin/python" -m pytest -q -p no:cacheprovider tests/test_nn.py)
}

report() {
  local file
  for file in "$root"/dist/*; do
    printf '%9d bytes  %s\n' "$(stat -c %s "$file")" "$(basename "$file")"
  done
  for file in "$root"/dist/*.whl; do "$tool/bin/auditwheel" show "$file" | tr '\n' ' ' | cut -c1-300; echo; done
}

mkdir -p "$root"
rm -rf "$root/dist" "$root/raw" "$root/raw-runtime"
tools/install_dependencies.sh build python
tools/real_peft/setup.sh python
tool=$PWD/build/venvs/python
build_wheels
[[ -n $fast ]] || build_from_sdist
for name in "${pythons[@]}"; do test_wheel "$name"; done
[[ -z $runtime ]] || runtime_wheel
"$root/env-${pythons[0]}/bin/python" tools/python_reference.py --check
report
