#!/usr/bin/env bash
# What CI leaves out, before a release: wheels for every Python, the sdist, the runtime's wheel, the module with address
# sanitizer, the packages in a fresh Debian, the static program. Writes what it saw to docs/release_check.md.
#
#     tools/release_check.sh [PART ...]      parts: wheels sanitizer packages static; default: all
set -euo pipefail
cd "$(dirname "$0")/.."
parts=("$@")
[[ ${#parts[@]} -gt 0 ]] || parts=(wheels sanitizer packages static)
page=docs/release_check.md
seen=()

note() { seen+=("$1"); echo "$1"; }

wheels() {
  tools/build_wheel.sh --runtime | tee build/release_check.log
  local line
  while read -r line; do note "$line"; done < <(grep -E "^ *[0-9]+ bytes|passed|^== " build/release_check.log)
}

# The module alone is instrumented; Python itself leaks on purpose, so only what has a frame of ours counts.
sanitizer() {
  cmake --preset asan -DPEFT_BUILD_PYTHON=ON -DPEFT_BUILD_EXAMPLES=OFF >build/asan.configure.log
  cmake --build --preset asan --target peft_python
  local asan
  asan=$(c++ -print-file-name=libasan.so)
  PYTHONPATH=build/asan/python PYTHONMALLOC=malloc LD_PRELOAD="$asan $(c++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=1 \
    LSAN_OPTIONS="suppressions=$PWD/tools/lsan_python.txt:print_suppressions=0" PEFT_STRESS_CALLS=200 PEFT_WITHOUT_TORCH=1 \
    build/venvs/python/bin/python -m pytest -q -p no:cacheprovider python/tests --deselect python/tests/test_threads.py::test_stress |
    tee build/release_check.log
  note "module with address and undefined behaviour sanitizer: $(tail -n 1 build/release_check.log)"
}

# A Debian with nothing but its own base, where apt-get brings what the packages ask for.
packages() {
  make -s packages
  local root=build/packages/root file
  command -v debootstrap >/dev/null || apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
  rm -rf "$root"
  debootstrap --variant=minbase bookworm "$root" http://deb.debian.org/debian >build/packages/debootstrap.log
  cp build/packages/*.deb "$root/root"
  cp -r tests/golden/convert/mixtral-plain/adapter "$root/root/adapter"
  cp -r tests/consumer examples "$root/root"
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  chroot "$root" sh -ec '
    apt-get install -y -qq --no-install-recommends /root/peft-cpp_*.deb >/dev/null 2>&1
    peft --version
    peft convert /root/adapter --to peft-fused --family mixtral --out /root/fused --quiet
    peft verify /root/adapter /root/fused --family mixtral
    apt-get install -y -qq --no-install-recommends g++ cmake make /root/libpeft-cpp-dev_*.deb >/dev/null 2>&1
    c++ -std=c++20 -o /root/program /root/consumer/main.cpp $(pkg-config --cflags --libs peft) && /root/program /root/adapter
    mkdir -p /root/tests && mv /root/consumer /root/tests/consumer
    cmake -S /root/tests/consumer -B /root/build >/dev/null && cmake --build /root/build >/dev/null && /root/build/consumer /root/adapter
    ls /usr/share/doc/peft-program' | tee build/release_check.log
  for file in build/packages/*.deb build/packages/*.tar.gz; do note "$(printf '%9d bytes  %s' "$(stat -c %s "$file")" "$(basename "$file")")"; done
  note "in a fresh Debian: $(tr '\n' ';' <build/release_check.log)"
}

static() { note "$(tools/build_static.sh)"; }

mkdir -p build
for part in "${parts[@]}"; do
  echo "== $part"
  "$part"
done
{
  echo "# What a release was checked with"
  echo
  echo "Written by \`tools/release_check.sh ${parts[*]}\` on $(date -I), commit $(git rev-parse --short HEAD)."
  echo
  printf '    %s\n' "${seen[@]}"
} >"$page"
