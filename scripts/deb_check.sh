#!/usr/bin/env bash
# Builds the Debian packages from a clean build, reads them with lintian, installs them into a fresh Debian, and there
# builds and runs README's first program, by find_package and by pkg-config, and the programs. Needs root and the network.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install_packages.sh debootstrap help2man lintian
build=$PWD/build/deb
root=$build/root
rm -rf "$build"
echo "== build"
cmake --preset shared -B "$build" --log-level=NOTICE -DCMAKE_INSTALL_PREFIX=/usr -DMAMBA_TESTS=OFF -DMAMBA_BENCH=OFF
cmake --build "$build"
echo "== pack"
(cd "$build" && cpack -G DEB)
packages=("$build"/*.deb)
# cpack calls ldconfig in scripts of its own, beside the trigger.
lintian --fail-on error,warning --suppress-tags maintscript-calls-ldconfig "${packages[@]}"

echo "== a fresh Debian"
depends=$(for package in "${packages[@]}"; do dpkg-deb -f "$package" Depends; done |
  tr ',' '\n' | sed 's/^ *//; s/[ (|].*//' | grep -v mamba | sort -u | paste -sd,)
# Debian itself comes from where this machine has it from.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' | awk '$2 == "bookworm" && !n++ { print $1 }')
debootstrap --variant=minbase --include="g++,cmake,make,pkgconf,$depends" \
  bookworm "$root" "${mirror:-http://deb.debian.org/debian}" >"$build/debootstrap.log" || {
  tail "$build/debootstrap.log" >&2
  exit 1
}
in_root() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" "$@"; }
mkdir "$root/work"
cp "${packages[@]}" "$root/work"
in_root sh -c 'dpkg -i /work/*.deb' >"$build/dpkg.log"

# The first block of README in a language.
first_block() { awk -v start="\`\`\`$1" '$0 == start { on = 1; next } /^```/ && on { exit } on' README.md; }
first_block cpp >"$root/work/main.cpp"
{
  echo 'cmake_minimum_required(VERSION 3.25)'
  echo 'project(readme LANGUAGES CXX)'
  echo 'add_executable(my_program main.cpp)'
  first_block cmake
} >"$root/work/CMakeLists.txt"
cat >"$root/work/try.sh" <<'END'
set -eux
cd /work
cmake -S . -B build
cmake --build build
build/my_program
g++ -std=c++17 main.cpp -o by_pkg_config $(pkg-config --cflags --libs mamba-cpp)
./by_pkg_config
if readelf -d /usr/bin/mamba-lm /usr/lib/*/libmamba-cpp.so | grep -E 'RPATH|RUNPATH'; then exit 1; fi
for program in mamba-lm mamba-rl mamba-server train-lm beam_search best_of_n; do $program --version; done
mamba-lm generate /usr/share/mamba/model --prompt "And the king said" -n 100  # without /proc, nobody finds it himself
END
echo "== README's program and the installed ones"
in_root sh /work/try.sh
rm -rf "$root"
