# Shared by the scripts. Source it; it changes into the project's folder.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Build outputs live outside the checkout, so that a fresh clone finds them.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/seiketsu-gateway/target}"
TOOLS="${XDG_CACHE_HOME:-$HOME/.cache}/seiketsu-gateway/tools"
PROFILES="${XDG_CACHE_HOME:-$HOME/.cache}/seiketsu-gateway/profiles"
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

# install_server COMMAND PACKAGE [SERVICE]: Debian starts the services of what it installs; our programs start their own, on free
# ports, and others would only take CPU time from what is measured.
install_server() {
  command -v "$1" >/dev/null && return
  install_packages "$1=$2"
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  "${as_root[@]}" systemctl disable --quiet --now "${3:-$1}" 2>/dev/null || true
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

# The profile that script/dist makes of this very tree under load; any change to what is compiled asks for another one.
tree_profile() {
  local key
  key="$( (rustc --version --verbose
    git ls-files -z --cached --others --exclude-standard -- '*/src/*' Cargo.lock Cargo.toml '*/Cargo.toml' |
      xargs -0 sha256sum) | sha256sum)"
  echo "$PROFILES/${key:0:16}.profdata"
}

# Builds for measurements, with the tree's profile if there is one. The whole workspace, so that one build serves all.
build_dist() {
  local profile
  profile="$(tree_profile)"
  [ -f "$profile" ] && export RUSTFLAGS="-Cprofile-use=$profile"
  say "Building for measurements (minutes, when something changed)"
  cargo build --locked --quiet --profile dist --workspace --bins
}

# What building the gateway needs beyond a Rust toolchain.
install_build_tools() {
  command -v cargo >/dev/null || fail "no Rust toolchain found; install one from https://rustup.rs"
  # gcc alone comes without the headers and start files of the C library.
  install_packages cc=build-essential make=make cmake=cmake curl=curl
}
