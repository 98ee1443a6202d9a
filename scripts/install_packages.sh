#!/usr/bin/env bash
# Installs what a bare Debian 12 lacks to build, test and check this project. Quiet when nothing is missing.
set -euo pipefail

packages=(
  ca-certificates cmake g++ git ninja-build pkgconf python3-minimal
  libhwy-dev libicu-dev libfmt-dev nlohmann-json3-dev libxxhash-dev libcli11-dev libboost1.81-dev
  libgtest-dev libgmock-dev libbenchmark-dev "$@"
)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
  echo "missing packages, and neither root nor sudo to install them: ${missing[*]}" >&2
  exit 1
fi
echo "installing: ${missing[*]}"
as_root=$([ "$(id -u)" -eq 0 ] || echo sudo)
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
