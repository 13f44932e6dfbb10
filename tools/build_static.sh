#!/usr/bin/env bash
# build/static/peft: the program as one file that runs on any Linux of x86-64, without a shared library. It is linked from
# the objects of build/release (make build) and from static libraries. Debian has none of fmt and simdjson: they are
# compiled from its own source packages.
#
#     tools/build_static.sh          also makes build/static/peft-VERSION-static-linux-x86_64.tar.gz, with the licences
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/build/static
release=build/release
[[ -f $release/build.ninja ]] || { echo "$release is missing: make build" >&2; exit 1; }
mkdir -p "$out"
cmake --build $release --target peft_cli >"$out/log" || { cat "$out/log" >&2; exit 1; }  # objects of one and the same source
mkdir -p "$out/sources/lists/partial"
tools/install_dependencies.sh packaging

# Source packages, without a change to the machine's own list of package sources.
fetch_sources() {
  local suite
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  cd "$out/sources"
  echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main" >sources.list
  local options=(-o "Dir::Etc::sourcelist=$PWD/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$PWD/lists"
    -o APT::Sandbox::User=root)
  apt-get "${options[@]}" -qq update
  apt-get "${options[@]}" -qq source fmtlib simdjson
}
if ! compgen -G "$out/sources/simdjson-*/src" >/dev/null; then
  (fetch_sources) >"$out/log" 2>&1 || { cat "$out/log" >&2; exit 1; }
fi

# Versions are those of the shared libraries and of the headers that the objects were compiled with.
archive() {  # NAME FOLDER SOURCE ...
  local name=$1 folder=$2 source objects=()
  for source in "${@:3}"; do
    objects+=("$out/$name-$(basename "$source").o")
    ${CXX:-ccache c++} -O2 -DNDEBUG -std=c++17 -I"$folder" -I"$folder/include" -I"$folder/src" -c "$folder/$source" -o "${objects[-1]}"
  done
  ar rcs "$out/lib$name.a" "${objects[@]}"
}
archive fmt "$(echo "$out"/sources/fmtlib-*/)" src/format.cc src/os.cc
archive simdjson "$(echo "$out"/sources/simdjson-*/)" src/simdjson.cpp

c++ -static -O2 -Wl,--gc-sections -o "$out/peft" "$release"/CMakeFiles/peft_cli.dir/src/cli/main.cpp.o \
  "$release"/CMakeFiles/peft_without_torch.dir/src/cli/runtime/*.o "$release/libpeft_cli_parts.a" "$release/libpeft.a" \
  -L"$out" -lfmt -lsimdjson -lpcre2-8 -lxxhash -pthread
strip "$out/peft"

# It is the same tool, and needs no library.
[[ $("$out/peft" --version) == $("$release/peft" --version) ]]
if ldd "$out/peft" >/dev/null 2>&1; then echo "build/static/peft still needs shared libraries" >&2; exit 1; fi

# It works in a root folder where there is nothing else. Only root can change the root folder.
in_empty_root() {
  local root
  root=$(mktemp -d)
  cp "$out/peft" "$root"
  cp -r tests/golden/convert/mixtral-plain/adapter "$root"
  chroot "$root" /peft convert adapter --to peft-fused --family mixtral --out fused --quiet
  echo "in an empty root: $(chroot "$root" /peft verify adapter fused --family mixtral)"
  rm -rf "$root"
}
[[ $(id -u) != 0 ]] || in_empty_root

# The archive has the licences of what is inside, those of glibc and of GCC's libraries too.
folder=peft-$("$out/peft" --version | cut -d" " -f2)-static-linux-x86_64
rm -rf "${out:?}/$folder"
mkdir "$out/$folder"
cp "$out/peft" LICENSE python/licenses/THIRD_PARTY.txt "$out/$folder"
cp /usr/share/doc/libc6/copyright "$out/$folder/GLIBC.txt"
cp /usr/share/doc/libstdc++6/copyright "$out/$folder/GCC.txt"
tar -C "$out" -czf "$out/$folder.tar.gz" --owner=0 --group=0 "$folder"
for file in peft "$folder.tar.gz"; do printf '%9d bytes  %s\n' "$(stat -c %s "$out/$file")" "build/static/$file"; done

# Medians of starts in turn.
python3 - "$out/peft" "$release/peft" <<'PYTHON'
import statistics, subprocess, sys, time
times = {program: [] for program in sys.argv[1:]}
for _ in range(40):
    for program in times:
        start = time.perf_counter()
        subprocess.run([program, "--version"], stdout=subprocess.DEVNULL, check=True)
        times[program].append(1e3 * (time.perf_counter() - start))
static, shared = (statistics.median(row) for row in times.values())
print(f"starts in {static:.1f} ms, with shared libraries {shared:.1f} ms")
PYTHON
