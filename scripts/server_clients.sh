#!/usr/bin/env bash
# mamba-server with programs that others wrote: curl as README has it, the official client of OpenAI, schemathesis,
# which makes requests out of GET /openapi.json, and Chromium, which shows its page and is led by selenium. Debian has
# Chromium (chromium, chromium-driver); the others but curl come from PyPI into build/server_venv:
# scripts/server_clients.sh [BUILD [EXAMPLES]]
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/cpu}
examples=${2:-5}
venv=build/server_venv

wanted=(openai==3.57.0 schemathesis==4.32.5 selenium==4.51.0)
if ! "$venv/bin/python" -m pip freeze 2>/dev/null | grep -xFc -f <(printf '%s\n' "${wanted[@]}") | grep -qx "${#wanted[@]}"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check "${wanted[@]}"
fi

scratch=$(mktemp -d)
trap 'kill $server 2>/dev/null || true; rm -rf "$scratch"' EXIT

# Starts a server with these flags and sets `server` and `address`.
start() {
  "$build/examples/mamba-server" --port 0 "$@" 2>"$scratch/log" &
  server=$!
  for _ in $(seq 100); do
    address=$(sed -n 's/.*"listening":"\([^"]*\)".*/\1/p' "$scratch/log")
    [ -n "$address" ] && return
    sleep 0.1
  done
  cat "$scratch/log"
  exit 1
}

# Ends it, and looks at what it has said.
finish() {
  kill -TERM $server
  wait $server
  if grep '"status":500' "$scratch/log"; then exit 1; fi
  echo "server_clients: $(grep -c '"status"' "$scratch/log") requests, none answered by 500; ended by SIGTERM"
}

start
"$venv/bin/python" tests/server/openai_client_test.py "$address"
# The lines of README, as they stand there.
{
  echo 'curl() { command curl -fsS "$@"; }'
  awk '/^## Serve/ { on = 1; next } /^## / { on = 0 } on && /^    (curl|id=)/' README.md |
    sed "s#http://127.0.0.1:8080#$address#"
} >"$scratch/readme.sh"
(cd "$scratch" && bash -euo pipefail readme.sh >readme.out) || { cat "$scratch/readme.out"; exit 1; }
echo "server_clients: $(grep -c "$address" "$scratch/readme.sh") lines of README run"
finish
# Texts that it asks for are as long as they may be. One worker: Hypothesis keeps the sources of lambdas in a table that its
# threads change under each other, which it then reports as an error of the test.
start --states "$scratch/states" --max-tokens 32
"$venv/bin/schemathesis" run "$address/openapi.json" --seed 1 --max-examples "$examples" --workers 1 --no-color \
  --phases coverage,fuzzing --request-timeout 20 --checks all \
  --exclude-checks ignored_auth,positive_data_acceptance,missing_required_header,unsupported_method \
  >"$scratch/schemathesis" 2>&1 || { cat "$scratch/schemathesis"; exit 1; }
grep -E "generated|passed" "$scratch/schemathesis"
finish
# It has servers of its own: a state goes from the page of one to that of the other.
"$venv/bin/python" tests/server/page_test.py "$build/examples/mamba-server"
