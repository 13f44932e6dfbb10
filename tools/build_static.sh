#!/usr/bin/env bash
# build/static/peft: the program as one file that runs on any Linux of x86-64, without a shared library. It is linked from
# the objects of build/release (make build) and from static libraries. Debian has none of fmt and simdjson: they are
# compiled from its own source packages.
#
#     tools/build_static.sh
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/build/static
release=build/release
for file in "$release/libpeft_cli_parts.a" "$release/libpeft.a"; do
  [[ -f $file ]] || { echo "$file is missing: make build" >&2; exit 1; }
done
mkdir -p "$out/sources/lists/partial"

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
  -L"$out" -lfmt -lsimdjson -lpcre2-8 -lxxhash
strip "$out/peft"
cp LICENSE python/licenses/THIRD_PARTY.txt "$out"

# It is the same tool, needs no library, and starts where there is nothing else.
[[ $("$out/peft" --version) == $("$release/peft" --version) ]]
if ldd "$out/peft" >/dev/null 2>&1; then echo "build/static/peft still needs shared libraries" >&2; exit 1; fi
printf '%9d bytes  build/static/peft\n' "$(stat -c %s "$out/peft")"
