#!/usr/bin/env bash
# A real log file through syslog-ng's http() destination into a server that is restarted in between; then every line
# must be in the log. syslog-ng sends a batch again when it got no answer, so some may be there twice, and none is missing.
#
# Usage: examples/syslog-ng.sh FILE      Needs syslog-ng-core and syslog-ng-mod-http (Debian), and curl.
set -euo pipefail
file=$(realpath "${1:?name a log file}")
cd "$(dirname "$0")/.."
cargo build --quiet --release
millstream=target/release/millstream
work=$(mktemp -d)
listen=127.0.0.1:${PORT:-4438}
started=()
trap 'kill "${started[@]}" 2>/dev/null || true; sleep 0.5; rm -rf "$work"' EXIT

serve() {
  "$millstream" serve --listen "$listen" --data "$work/data" --create-logs 2>> "$work/server.log" &
  server=$!
  started+=("$server")
  until curl -sf "http://$listen/readyz" > /dev/null; do sleep 0.1; done
}
count() { curl -s "http://$listen/v1/logs/syslog" | sed -n 's/.*"next_offset":\([0-9]*\).*/\1/p;/log_not_found/c0'; }

cat > "$work/syslog-ng.conf" <<CONF
@version: 3.38
options { log-msg-size(1048576); stats-freq(0); };
source lines { file("$work/input.log" flags(no-parse) follow-freq(0.1) log-fetch-limit(1000) log-iw-size(20000)); };
destination millstream {
  http(
    url("http://$listen/v1/logs/syslog/records")
    method("POST")
    headers("Content-Type: application/x-ndjson")
    body("\$(format-json line=\$MESSAGE)")
    delimiter("\n") batch-lines(500) batch-timeout(100) workers(2)
    retries(1000) timeout(10) time-reopen(1)
  );
};
log { source(lines); destination(millstream); flags(flow-control); };
CONF

serve
: > "$work/input.log"
syslog-ng --no-caps -F -f "$work/syslog-ng.conf" -R "$work/persist" -p "$work/pid" -c "$work/ctl" 2> "$work/syslog-ng.log" &
started+=("$!")
sleep 1
cat "$file" >> "$work/input.log"
lines=$(grep -c . "$file") # syslog-ng passes over empty lines

until [ "$(count)" -gt $((lines / 4)) ]; do sleep 0.05; done
echo "killing the server after $(count) of $lines lines"
kill -9 "$server"
sleep 2
serve
until [ "$(count)" -ge "$lines" ]; do sleep 0.5; done
sleep 2 # for what is sent again

"$millstream" read syslog --url "http://$listen" > "$work/read"
python3 - "$work/read" "$file" <<'CHECK'
import collections, json, sys
have = collections.Counter(json.loads(line)["line"] for line in open(sys.argv[1], encoding="utf-8"))
want = collections.Counter(line.rstrip("\n") for line in open(sys.argv[2], encoding="utf-8") if line != "\n")
missing, twice = want - have, have - want
print(f"{sum(want.values())} lines sent, {sum(have.values())} in the log: {sum(missing.values())} missing, {sum(twice.values())} twice")
sys.exit(1 if missing else 0)
CHECK
