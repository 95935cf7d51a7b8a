# Shared by the scripts. Source it; it changes into the project's folder.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Build outputs live outside the checkout, so that a fresh clone finds them.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/seiketsu-gateway/target}"
TOOLS="${XDG_CACHE_HOME:-$HOME/.cache}/seiketsu-gateway/tools"
export PATH="$TOOLS/bin:$PATH"

# free_ports PORT…: whether nobody listens there, before something is started that would only fail later.
free_ports() {
  local port
  for port in "$@"; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      fail "port $port is in use; end what listens there (ss -ltnp 'sport = :$port' shows it) and try again"
    fi
  done
}

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# install_packages COMMAND=PACKAGE…: installs the Debian packages whose command is missing.
install_packages() {
  local missing=() pair
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  [ "${#missing[@]}" -eq 0 ] && return
  say "Installing ${missing[*]}"
  command -v apt-get >/dev/null || fail "please install: ${missing[*]}"
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# install_cargo_tool COMMAND CRATE VERSION: builds a tool into the cache, once per version.
install_cargo_tool() {
  local command=$1 crate=$2 version=$3
  [ -x "$TOOLS/bin/$command" ] && [ -f "$TOOLS/$crate-$version" ] && return
  say "Building $crate $version (once)"
  CARGO_TARGET_DIR="$TOOLS/build" cargo install --quiet --locked --root "$TOOLS" --version "$version" "$crate"
  rm -rf "$TOOLS/build"
  touch "$TOOLS/$crate-$version"
}

# What building the gateway needs beyond a Rust toolchain.
install_build_tools() {
  command -v cargo >/dev/null || fail "no Rust toolchain found; install one from https://rustup.rs"
  # gcc alone comes without the headers and start files of the C library.
  install_packages cc=build-essential make=make cmake=cmake curl=curl
}
