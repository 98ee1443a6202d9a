#!/usr/bin/env bash
# clang-tidy over the .cpp files that changed since a commit: scripts/tidy.sh [COMMIT] [MOST]
# COMMIT is the last one but one unless given. A file takes about twenty seconds, so no more than MOST files (12) are
# read; which are left out is said.
set -euo pipefail
cd "$(dirname "$0")/.."
since=${1:-HEAD~1}
most=${2:-12}

if ! git rev-parse -q --verify "$since^{commit}" >/dev/null; then
  echo "tidy: no commit $since to compare with"
  exit 0
fi
[ -f build/cpu/compile_commands.json ] || cmake --preset cpu --log-level=NOTICE
mapfile -t files < <(git diff --name-only --diff-filter=d "$since" -- 'src/host/*.cpp' 'src/nccl/*.cpp' 'examples/*.cpp')
# What this build does not compile has no flags.
built=()
for file in "${files[@]}"; do
  if grep -q "$PWD/$file\"" build/cpu/compile_commands.json; then built+=("$file"); fi
done
echo "tidy: ${#built[@]} files changed since $since"
if [ ${#built[@]} -gt "$most" ]; then printf 'tidy: left out: %s\n' "${built[@]:most}"; fi
[ ${#built[@]} -eq 0 ] && exit 0
printf '%s\n' "${built[@]:0:most}" | xargs -P "$(nproc)" -n 2 clang-tidy-14 -p build/cpu --quiet
