#!/usr/bin/env bash
# One 100-byte record a request over HTTP, server on core 0, wrk on core 1: the hyper ceiling and Millstream in
# turn, so that both see the same noise; at last to 1,000 logs in turn, durable. Needs wrk and curl.
# Usage: benches/http.sh [ROUNDS] [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3} seconds=${2:-5}
cargo build --profile bench --quiet --bin millstream --example ceiling
work=$(mktemp -d "$PWD/target/http.XXXXXX")
started=()
trap 'kill "${started[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT

cat > "$work/post.lua" <<'LUA'
wrk.method = "POST"
wrk.body = '{"record":{"value":"' .. string.rep("QUJD", 33) .. 'QQ=="}}'
LUA

taskset -c 0 target/release/examples/ceiling > "$work/ceiling" & started+=($!)
for durability in disk memory; do
  NO_COLOR=1 taskset -c 0 target/release/millstream serve --threads 1 --listen 127.0.0.1:0 --data "$work/$durability" \
    --durability "$durability" 2> "$work/$durability.log" & started+=($!)
done
sleep 1
cat > "$work/logs.lua" <<'LUA'
local n = 0
local headers = { ["Content-Type"] = "application/octet-stream" }
local body = string.rep("x", 100)
function request()
  n = (n + 1) % 1000
  return wrk.format("POST", "/v1/logs/log-" .. n .. "/records", headers, body)
end
LUA

address() { sed -n 's/.*address=\([^ ]*\).*/\1/p' "$work/$1.log"; }

run() { # connections, label, script, address
  taskset -c 1 wrk -t1 -c"$1" -d"${seconds}s" --latency -s "$work/$3.lua" "http://$4/" > "$work/out"
  awk -v c="$1" -v t="$2" \
    '/Requests\/sec/ {r=$2} /50%/ {m=$2} /99%/ {n=$2} /Non-2xx/ {bad=" ERRORS " $NF} \
     END {printf "%3d connections  %-10s %9.0f requests/s  p50 %s  p99 %s%s\n", c, t, r, m, n, bad}' "$work/out"
}
for connections in 64 256; do
  for _ in $(seq "$rounds"); do
    run "$connections" ceiling post "$(cat "$work/ceiling")"
    run "$connections" disk post "$(address disk)"
    run "$connections" memory post "$(address memory)"
  done
done
for n in $(seq 0 999); do echo "url = \"http://$(address disk)/v1/logs/log-$n\""; done > "$work/logs"
curl -s -X PUT --config "$work/logs" > /dev/null
for _ in $(seq "$rounds"); do
  run 256 ceiling logs "$(cat "$work/ceiling")"
  run 256 "1,000 logs" logs "$(address disk)"
done
