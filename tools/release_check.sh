#!/usr/bin/env bash
# What CI leaves out, before a release: wheels for every Python, the sdist, the runtime's wheel, the module with address
# sanitizer, the packages in a fresh Debian, the static program. The results of the parts that ran are kept in
# docs/notes/release_check.md.
#
#     tools/release_check.sh [PART ...]      parts: wheels sanitizer packages static; default: all
set -euo pipefail
cd "$(dirname "$0")/.."
parts=("$@")
[[ ${#parts[@]} -gt 0 ]] || parts=(wheels sanitizer packages static)
page=docs/notes/release_check.md
results=$PWD/build/release_check

note() { echo "$1" | tee -a "$results/$part"; }

wheels() {
  tools/build_wheel.sh --runtime | tee "$results/log"
  local line
  while read -r line; do note "$line"; done < <(grep -E "bytes  |passed|^== |^Success|manylinux_" "$results/log")
}

# The module is instrumented (`make asan` does the core), and leaks of both are found. numpy leaks some types when it is
# imported; a process of ours may leak no more than that. A leak that is made on purpose shows that leaks are seen.
sanitizer() {
  local build=build/asan-python
  PEFT_WITH_TORCH=OFF cmake --preset release -B $build -DPEFT_BUILD_PYTHON=ON -DPEFT_BUILD_BENCH=OFF -DPEFT_BUILD_EXAMPLES=OFF \
    -DPEFT_SANITIZE_PYTHON=address,undefined >"$results/log"
  CCACHE_BASEDIR=$PWD CCACHE_SLOPPINESS=pch_defines,time_macros cmake --build $build --target peft_python -j "${JOBS:-$(nproc)}" >>"$results/log"
  if [[ ! -x $build/env/bin/pytest ]]; then  # without torch, which is not built for sanitizers
    build/venvs/python/bin/python -m venv $build/env
    $build/env/bin/python -m pip install -qq --disable-pip-version-check numpy ml_dtypes pytest
  fi
  rm -f "$results"/asan.* "$results"/numpy.* "$results"/wanted.*
  under_sanitizer numpy -c "import numpy, ml_dtypes"
  under_sanitizer wanted -c "import ctypes, peft_cpp, peft_cpp._core; ctypes.CDLL(None).malloc(54321)"
  under_sanitizer asan -m pytest -q -p no:cacheprovider python/tests | tee "$results/log"
  note "the module with address and undefined behaviour sanitizer: $(tail -n 1 "$results/log")"
  note "$(python3 - "$results" <<'PYTHON'
import pathlib, re, sys
def leaked(name):  # without what tracemalloc, which the stress test uses, keeps for itself
    return [sum(int(size) for size, stack in re.findall(r"leak of (\d+) byte(.*?)\n\n", file.read_text(errors="replace"), re.DOTALL)
                if "_tracemalloc.c" not in stack) for file in pathlib.Path(sys.argv[1]).glob(f"{name}.*")]
numpy, ours, wanted = (max(leaked(name), default=0) for name in ("numpy", "asan", "wanted"))
if wanted < 54321:
    sys.exit(f"a leak of 54321 bytes was made and not found: {wanted}")
print(f"bytes that a process leaks: {ours} (by the import of numpy alone: {numpy}); a leak of 54321 made on purpose was found")
sys.exit(1 if ours > numpy else 0)
PYTHON
)"
}

under_sanitizer() {  # NAME-OF-LOG ARGUMENTS-OF-PYTHON
  PYTHONPATH=build/asan-python/python PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1 \
    LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libstdc++.so)" UBSAN_OPTIONS=print_stacktrace=1 \
    ASAN_OPTIONS=detect_leaks=1:exitcode=0:abort_on_error=1:allocator_may_return_null=1:log_path="$results/$1" \
    build/asan-python/env/bin/python "${@:2}"
}

# A Debian with nothing but its own base, where apt-get brings what the packages ask for.
packages() {
  make -s packages
  local root=build/packages/root file
  rm -rf "$root"
  debootstrap --variant=minbase bookworm "$root" http://deb.debian.org/debian >"$results/log"
  cp build/packages/*.deb build/packages/*.tar.gz "$root/root"
  cp -r tests/golden/convert/mixtral-plain/adapter "$root/root/adapter"
  mkdir "$root/root/tests"
  cp -r tests/consumer "$root/root/tests"
  cp -r examples "$root/root"
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  chroot "$root" sh -ec 'cd /root
    tried() {
      "$1/peft" --version
      "$1/peft" convert adapter --to peft-fused --family mixtral --out fused --quiet --overwrite
      "$1/peft" verify adapter fused --family mixtral
    }
    apt-get install -y -qq --no-install-recommends ./peft-cpp_*.deb >/dev/null 2>&1
    tried /usr/bin
    ls /usr/share/doc/peft-cpp
    apt-get install -y -qq --no-install-recommends g++ cmake make ./libpeft-cpp-dev_*.deb >/dev/null 2>&1
    ls /usr/share/doc/libpeft-cpp-dev
    echo "pkg-config: peft $(pkg-config --modversion peft)"
    c++ -std=c++20 -o program tests/consumer/main.cpp $(pkg-config --cflags --libs peft)
    ./program adapter
    cmake -S tests/consumer -B build >/dev/null
    cmake --build build >/dev/null
    echo "CMake:"
    build/consumer adapter
    build/consumer_c adapter converted
    apt-get purge -y -qq peft-cpp libpeft-cpp-dev >/dev/null 2>&1
    [ ! -e /usr/bin/peft ]
    for archive in *.tar.gz; do tar -xzf $archive; done
    echo "from .tar.gz:"
    tried "$(echo /root/peft-cpp-*/bin)"
    ls peft-cpp-*/share/doc/*' | tee "$results/log"
  for file in build/packages/*.deb build/packages/*.tar.gz; do note "$(printf '%9d bytes  %s' "$(stat -c %s "$file")" "$(basename "$file")")"; done
  note "in a fresh Debian:"
  local line
  while read -r line; do note "  $line"; done <"$results/log"
}

static() {
  make -s build
  local line
  while read -r line; do note "$line"; done < <(tools/build_static.sh)
}

# The page's text between the comments that name the part.
keep() {
  python3 - "$page" "$part" "$results/$part" "$(date -I), commit $(git rev-parse --short HEAD), $1 s" <<'PYTHON'
import pathlib, sys
page, part, lines, run = sys.argv[1:]
page = pathlib.Path(page)
head, rest = page.read_text().split(f"<!-- {part} -->\n")
tail = rest.split(f"<!-- end of {part} -->")[1]
text = "".join(f"    {line}\n" for line in pathlib.Path(lines).read_text().splitlines())
page.write_text(f"{head}<!-- {part} -->\nRun: {run}.\n\n{text}<!-- end of {part} -->{tail}")
PYTHON
}

mkdir -p "$results"
for part in "${parts[@]}"; do
  echo "== $part"
  start=$SECONDS
  : >"$results/$part"
  "$part"
  keep $((SECONDS - start))
done
