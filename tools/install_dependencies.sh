#!/usr/bin/env bash
# Installs the Debian packages that are missing; does nothing when all are there.
#
#     tools/install_dependencies.sh [build] [lint] [fuzz] [python]       default: build (compiler, libraries, tests)
set -euo pipefail

build="g++ cmake ninja-build ccache pkg-config libsimdjson-dev nlohmann-json3-dev libpcre2-dev libcli11-dev
  libfmt-dev libhwy-dev libxxhash-dev libeigen3-dev libgtest-dev libgmock-dev librapidcheck-dev"
lint="clang-format clang-tidy"
fuzz="clang libclang-rt-dev"
python="python3-venv python3-dev"

packages=""
for group in "${@:-build}"; do
  case $group in
    build | lint | fuzz | python) packages+=" ${!group}" ;;
    *) echo "unknown group: $group (build, lint, fuzz, python)" >&2; exit 2 ;;
  esac
done
# A Python from elsewhere (pyenv, an image) is as good as Debian's.
command -v python3 >/dev/null || packages+=" python3"

if ! command -v dpkg-query >/dev/null; then
  echo "Not a Debian system. What is needed, by Debian's names:$packages" >&2
  exit 0  # CMake says what is really missing
fi

missing=""
for package in $packages; do
  status=$(dpkg-query -W -f='${db:Status-Status} ' "$package" 2>/dev/null || true)
  [[ $status == *"installed "* && $status != *"not-installed"* ]] || missing+=" $package"
done
[[ -n $missing ]] || exit 0

echo "Installing with apt-get:$missing"
as_root=""
if [[ $(id -u) != 0 ]]; then
  command -v sudo >/dev/null || { echo "Run as root, or install sudo:$missing" >&2; exit 1; }
  as_root="sudo"
fi
export DEBIAN_FRONTEND=noninteractive
# Package managers print hundreds of lines. They are shown only when something goes wrong.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
  $as_root apt-get update -qq &&
    $as_root apt-get install -y -qq --no-install-recommends $missing  # a list of words
}
install >"$log" 2>&1 </dev/null || { cat "$log" >&2; exit 1; }
