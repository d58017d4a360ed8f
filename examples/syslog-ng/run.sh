#!/usr/bin/env bash
# The lines of a file through syslog-ng's http() destination, as syslog-ng.conf says, into a server that is killed and
# started again in between; then every line must be in the log. syslog-ng sends a batch again when it got no answer, so
# some lines may be there twice.
#
# Usage: examples/syslog-ng/run.sh [FILE]   Without FILE: the source of Millstream. MILLSTREAM names the binary, if it is
#                                           not to be built. Needs syslog-ng-core and syslog-ng-mod-http (Debian), curl
#                                           and python3.
#                                           Exits with 77 if something that it needs is not there.
set -euo pipefail
skip() { echo "SKIPPED: $*"; exit 77; }
for tool in syslog-ng curl python3; do command -v "$tool" >/dev/null || skip "there is no $tool"; done
syslog-ng --module-registry 2>/dev/null | grep '^Module: http$' >/dev/null || skip "syslog-ng has no http()"
file=$(realpath "${1:-/dev/null}")
cd "$(dirname "$0")/../.."
[ -n "${MILLSTREAM:-}" ] || cargo build --quiet --release
millstream=$(realpath "${MILLSTREAM:-${CARGO_TARGET_DIR:-target}/release/millstream}")
work=$(mktemp -d)
trap 'kill $(jobs -rp) 2>/dev/null || true; wait; rm -rf "$work"' EXIT
[ "$file" != /dev/null ] || { file=$work/source; find src tests -name '*.rs' -exec cat {} + >"$file"; }

log=lines said=$work/syslog-ng.log
. examples/server.sh

serve
: >"$work/input.log"
FILE=$work/input.log ADDRESS=$address syslog-ng --no-caps -F -f "$PWD/examples/syslog-ng/syslog-ng.conf" \
  -R "$work/persist" -p "$work/pid" -c "$work/ctl" 2>"$work/syslog-ng.log" &
sleep 1
split -n l/40 "$file" "$work/part."
for part in "$work"/part.*; do cat "$part"; sleep 0.05; done >>"$work/input.log" & # so that it is still writing then
lines=$(grep -c . "$file") # syslog-ng passes over empty lines

until_there_are $((lines / 4))
echo "killing the server after $(count) of $lines lines"
kill -9 "$server"
wait "$server" 2>/dev/null || true
sleep 2
serve
until_there_are "$lines"
until [ "$(count)" = "${before:-}" ]; do before=$(count); sleep 2; done # what is sent again has come, too

"$millstream" read lines --url "http://$address" >"$work/read"
python3 - "$work/read" "$file" <<'CHECK'
import collections, json, sys
have = collections.Counter(json.loads(line)["line"] for line in open(sys.argv[1], encoding="utf-8"))
want = collections.Counter(line.rstrip("\n") for line in open(sys.argv[2], encoding="utf-8") if line != "\n")
missing, twice = want - have, have - want
print(f"{sum(want.values())} lines sent, {sum(have.values())} in the log: {sum(missing.values())} missing, {sum(twice.values())} twice")
sys.exit(1 if missing else 0)
CHECK
