#!/usr/bin/env bash
# Builds the library and its tests for AArch64 and runs them under qemu-user: the NEON code, and an order of memory
# that is weaker than x86's as far as qemu keeps it. Slow, so it is not in .ci/run.
# Usage: scripts/aarch64_check.sh [GTEST_FILTER] [TARGET: mamba_tests or mamba_thread_tests]
# The machine gets a cross compiler and qemu; AArch64's packages are unpacked into build/aarch64-sysroot alone.
set -euo pipefail
cd "$(dirname "$0")/.."

# What the library and its tests link to, as in install_packages.sh.
packages=(
  libc6-dev libstdc++-12-dev
  libhwy-dev libicu-dev libfmt-dev nlohmann-json3-dev libxxhash-dev
  libgtest-dev libgmock-dev
)
# Without the one whose process limits its own memory: qemu-user does not pass that limit on.
filter=${1:-*:-*ARefusedThread*}
target=${2:-mamba_tests}

scripts/install_packages.sh g++-aarch64-linux-gnu qemu-user-static
sysroot=$PWD/build/aarch64-sysroot
list="${packages[*]}"
if [ "$(cat "$sysroot/packages" 2>/dev/null)" != "$list" ]; then
  echo "== sysroot"
  rm -rf "$sysroot"
  mkdir -p "$sysroot"/apt/{state/lists/partial,cache/archives/partial}
  touch "$sysroot/apt/status"
  apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User=root
       -o Dir::State="$sysroot/apt/state" -o Dir::State::status="$sysroot/apt/status"
       -o Dir::Cache="$sysroot/apt/cache" -o Debug::NoLocking=1)
  "${apt[@]}" update
  "${apt[@]}" install --download-only --no-install-recommends -y "${packages[@]}"
  for deb in "$sysroot"/apt/cache/archives/*.deb; do dpkg-deb -x "$deb" "$sysroot"; done
  rm -rf "$sysroot/apt"
  echo "$list" >"$sysroot/packages"
fi

cmake -S . -B build/aarch64 -G Ninja --log-level=NOTICE -DCMAKE_TOOLCHAIN_FILE=cmake/toolchains/aarch64.cmake \
  -DCMAKE_BUILD_TYPE=Release "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -DNDEBUG" -DMAMBA_CUDA=OFF -DMAMBA_EXAMPLES=OFF \
  -DMAMBA_BENCH=OFF -DMAMBA_INSTALL=OFF
cmake --build build/aarch64 --target "$target"
qemu-aarch64-static -L "$sysroot" "build/aarch64/tests/$target" --gtest_brief=1 \
  --gtest_filter="$filter"
