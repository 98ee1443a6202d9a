#!/usr/bin/env bash
# clang-tidy over the sources and public headers that changed since a commit: scripts/tidy.sh [COMMIT] [MOST]
# COMMIT is the tenth before unless given, or the first of a shorter history. A file takes two to three seconds, so no
# more than MOST of them (60) are read; which are left out is said.
set -euo pipefail
cd "$(dirname "$0")/.."
since=${1:-HEAD~10}
most=${2:-60}

if ! git rev-parse -q --verify "$since^{commit}" >/dev/null; then
  if [ $# -gt 0 ]; then echo "tidy: no commit $since" >&2 && exit 1; fi
  since=$(git rev-list HEAD | tail -1)
fi
cmake --preset cpu --log-level=NOTICE >/dev/null
mapfile -t changed < <(git diff --name-only --diff-filter=d "$since" -- \
  'include/mamba/*.hpp' 'src/host/*.cpp' 'src/nccl/*.cpp' 'examples/*.cpp' \
  'docs/cookbook/*.cpp')
files=()
for file in "${changed[@]}"; do
  if [[ $file == include/* ]]; then  # compiled alone: cmake/HeadersAlone.cmake
    name=${file#include/}
    file=build/cpu/headers_alone/${name//[\/.]/_}.cpp
  fi
  # What this build does not compile has no flags.
  if grep -q "$PWD/$file\"" build/cpu/compile_commands.json; then files+=("$file"); fi
done
echo "tidy: ${#files[@]} files changed since $since"
if [ ${#files[@]} -gt "$most" ]; then printf 'tidy: left out: %s\n' "${files[@]:most}"; fi
[ ${#files[@]} -eq 0 ] && exit 0
printf '%s\n' "${files[@]:0:most}" | xargs -P "$(nproc)" -n 4 clang-tidy-14 -p build/cpu --quiet 2>&1 |
  sed '/^[0-9]* warnings\? generated\.$/d'
