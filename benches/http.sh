#!/usr/bin/env bash
# One 100-byte record a request over HTTP, server on core 0, wrk on core 1: the hyper ceiling and Millstream in
# turn, so that both see the same noise. Needs wrk. Usage: benches/http.sh [ROUNDS] [SECONDS]
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
address() { sed -n 's/.*address=\([^ ]*\).*/\1/p' "$work/$1.log"; }

for connections in 64 256; do
  for _ in $(seq "$rounds"); do
    for target in ceiling disk memory; do
      if [ "$target" = ceiling ]; then to=$(cat "$work/ceiling"); else to=$(address "$target"); fi
      taskset -c 1 wrk -t1 -c"$connections" -d"${seconds}s" --latency -s "$work/post.lua" "http://$to/" > "$work/out"
      awk -v c="$connections" -v t="$target" \
        '/Requests\/sec/ {r=$2} /50%/ {m=$2} /99%/ {n=$2} /Non-2xx/ {bad=" ERRORS " $NF} \
         END {printf "%3d connections  %-8s %9.0f requests/s  p50 %s  p99 %s%s\n", c, t, r, m, n, bad}' "$work/out"
    done
  done
done
