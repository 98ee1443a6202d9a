#!/usr/bin/env bash
# A compiler launcher: runs nvcc and keeps what ptxas reports beside the object (OBJECT.ptxas), off the screen.
set -uo pipefail

object=""
previous=""
for argument in "$@"; do
  [ "$previous" = "-o" ] && object=$argument
  previous=$argument
done
if [ -z "$object" ]; then exec "$@"; fi

"$@" 2>"$object.ptxas"
status=$?
grep -vE "^ptxas info|^ +[0-9]+ bytes stack frame|^$" "$object.ptxas" >&2
exit $status
