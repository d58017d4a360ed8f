#!/usr/bin/env bash
# What collectd's plugins measure through its write_http plugin, as collectd.conf says, into a server that is killed and
# started again in between. collectd drops values whose batch got no answer: so nothing is stored twice, and what is
# missing was never acknowledged. What collectd has measured is known from its plugin csv.
#
# Usage: examples/collectd/run.sh     MILLSTREAM names the binary, if it is not to be built. Needs collectd-core,
#                                     libcurl3-gnutls and libyajl2 (Debian), curl and python3.
#                                     Exits with 77 if something that it needs is not there.
set -euo pipefail
skip() { echo "SKIPPED: $*"; exit 77; }
for tool in collectd curl python3; do command -v "$tool" >/dev/null || skip "there is no $tool"; done
plugin=$(ls /usr/lib/collectd/write_http.so /usr/lib*/*/collectd/write_http.so 2>/dev/null | head -n 1) || true
[ -n "$plugin" ] || skip "collectd has no write_http"
! ldd "$plugin" | grep 'not found' || skip "collectd's write_http needs these"
cd "$(dirname "$0")/../.."
[ -n "${MILLSTREAM:-}" ] || cargo build --quiet --release
millstream=$(realpath "${MILLSTREAM:-${CARGO_TARGET_DIR:-target}/release/millstream}")
work=$(mktemp -d)
trap 'kill $(jobs -rp) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

log=metrics said=$work/collectd.log
. examples/server.sh
read_all() { "$millstream" read metrics --url "http://$address"; }

serve
# All that it writes goes into one directory.
sed "s#\"/.*/#\"$work/#; s#127.0.0.1:4437#$address#" examples/collectd/collectd.conf >"$work/collectd.conf"
collectd -f -C "$work/collectd.conf" 2>>"$work/collectd.log" &
collectd=$!

until_there_are 1000
read_all >"$work/before"
killed=$(date +%s.%N)
kill -9 "$server"
wait "$server" 2>/dev/null || true
sleep 2
serve
ready=$(date +%s.%N)
until_there_are $(($(count) + 1000))
kill "$collectd" # it sends what it has kept
wait "$collectd" || true
read_all >"$work/after"

python3 - "$work" "$killed" "$ready" <<'CHECK'
import collections, json, pathlib, sys
work, killed, ready = pathlib.Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
before, after = (work / "before").read_text(), (work / "after").read_text()
# Values are named as the files of csv are: plugin-instance/type-instance, and the time.
joined = lambda one, instance: one + ("-" + instance if instance else "")
def name(record):
    plugin, kind = joined(record["plugin"], record["plugin_instance"]), joined(record["type"], record["type_instance"])
    return plugin, kind, f'{record["time"]:.3f}'
have = collections.Counter()
for line in after.splitlines():
    have[name(json.loads(line))] += 1
want = collections.Counter()
for file in (work / "csv" / "example").glob("*/*"):
    for line in file.read_text().splitlines()[1:]:
        want[file.parent.name, file.name[:-len("-2026-01-02")], line.split(",")[0]] += 1
missing, twice = want - have, have - want
away = lambda time: killed - 3 <= float(time) <= ready + 3 # with the time that collectd keeps values
lost = [key for key in missing if not away(key[2])]
failed = sum("write_http plugin" in line for line in (work / "collectd.log").read_text().splitlines())
assert after.startswith(before), "what readers saw before the server was killed is not there any more"
assert not lost, f"{len(lost)} values are missing from when the server was there: {lost[:5]}"
assert not twice, f"stored twice, or never measured: {list(twice)[:5]}"
print(f"{sum(want.values())} values measured, {sum(have.values())} in the log: {sum(missing.values())} missing, "
      f"all from {ready - killed:.1f} s without a server, in which {failed} batches failed; none twice")
CHECK
