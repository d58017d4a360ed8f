#!/usr/bin/env bash
# Batches of 1 MiB over HTTP by format, durable, and ranges of 1 MiB: server on core 0, wrk on core 1, each beside hyper
# that drops the same body, or sends as many bytes, in turn; and what the disk takes bare. MiB of bodies a second. Needs
# wrk and python3.
# Usage: benches/http_batches.sh [ROUNDS] [SECONDS]
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3} seconds=${2:-4}
cargo build --profile bench --quiet --bin millstream --example ceiling
work=$(mktemp -d "$PWD/target/batches.XXXXXX")
started=()
trap 'kill "${started[@]}" 2>/dev/null || true; sleep 0.3; rm -rf "$work"' EXIT

python3 - "$work" <<'MAKE'
import base64, json, struct, sys
line = json.dumps({"time": "2026-01-02T03:04:05.678Z", "level": "info", "path": "/v1/things/12345", "status": 200,
                   "user": "0123456789abcdef", "took_ms": 12.5, "message": "request answered"}).encode()
line = line[:-2] + b"." * (153 - len(line)) + line[-2:]
count = (1 << 20) // (len(line) + 1)
bodies = {
    "ndjson": ("application/x-ndjson", (line + b"\n") * count),
    "text": ("text/plain", (line + b"\n") * count),
    "frames": ("application/vnd.millstream.frames", (struct.pack("<I", len(line)) + line) * count),
    "json": ("application/json", b'{"records":[' + b",".join([b'{"json":' + line + b"}"] * count) + b"]}"),
}
for name, (media, body) in bodies.items():
    open(f"{sys.argv[1]}/{name}.body", "wb").write(body)
    open(f"{sys.argv[1]}/{name}.lua", "w").write(
        f'local file = io.open("{sys.argv[1]}/{name}.body", "rb")\n'
        f'wrk.method = "POST"\nwrk.body = file:read("*a")\nwrk.headers["Content-Type"] = "{media}"\n')
open(f"{sys.argv[1]}/range.lua", "w").write('wrk.headers["Accept"] = "application/octet-stream"\n')
MAKE

taskset -c 0 target/release/examples/ceiling > "$work/ceiling" & started+=($!)
NO_COLOR=1 taskset -c 0 target/release/millstream serve --threads 1 --listen 127.0.0.1:0 --data "$work/data" 2> "$work/log" & started+=($!)
sleep 1
ceiling=$(cat "$work/ceiling")
served=$(sed -n 's/.*address=\([^ ]*\).*/\1/p' "$work/log")
for name in ndjson text frames json; do
  curl -s -X PUT "http://$served/v1/logs/$name" -d '{"retention_bytes":1073741824}' > /dev/null
done
curl -s -X PUT "http://$served/v1/logs/range" > /dev/null
curl -s "http://$served/v1/logs/range/records" -H 'Content-Type: text/plain' --data-binary "@$work/text.body" > /dev/null

run() { # label, bytes a request, wrk's arguments
  local label=$1 bytes=$2; shift 2
  taskset -c 1 wrk -t1 -c8 -d"${seconds}s" "$@" > "$work/out"
  awk -v l="$label" -v b="$bytes" '/Requests\/sec/ {r=$2} /Non-2xx/ {bad=" ERRORS " $NF} END {printf "%-18s %8.0f MiB/s%s\n", l, r*b/1048576, bad}' "$work/out"
}
disk() { # 8 MiB at a time, past the page cache, to blocks written before
  dd if=/dev/zero of="$work/bare" bs=8M count=64 oflag=direct,dsync conv=notrunc 2>&1 |
    awk '/copied/ {printf "%-18s %8.0f MiB/s\n", "disk, bare", 512 / $(NF - 3)}'
}
disk > /dev/null
for _ in $(seq "$rounds"); do
  disk
  for name in text frames ndjson json; do
    bytes=$(stat -c %s "$work/$name.body")
    run "ceiling" "$bytes" -s "$work/$name.lua" "http://$ceiling/"
    run "$name" "$bytes" -s "$work/$name.lua" "http://$served/v1/logs/$name/records"
  done
  run "ceiling range" 1048576 "http://$ceiling/"
  run "range" "$(curl -s "http://$served/v1/logs/range/records?limit=100000&max_bytes=1048576" -H 'Accept: application/octet-stream' | wc -c)" \
    -s "$work/range.lua" "http://$served/v1/logs/range/records?limit=100000&max_bytes=1048576"
done
