# For the scripts beside it, which source it: a server that is started and can be started again, and what it has.
# Needs $millstream, the binary; $work, a directory; $log, the name of a log; and $said, the file that a shipper's errors go to.

address=${LISTEN:-127.0.0.1:0} # the first time, a port that is free
serve() {
  : >"$work/server.log"
  "$millstream" serve --listen "$address" --data "$work/data" --create-logs 2>>"$work/server.log" &
  server=$!
  until curl -sf "http://$address/readyz" >/dev/null; do
    kill -0 "$server" 2>/dev/null || { cat "$work/server.log"; exit 1; }
    address=$(sed -n 's/.*address=\([^ ]*\).*/\1/p' "$work/server.log" | grep . || echo "$address")
    sleep 0.1
  done
}
count() { curl -s "http://$address/v1/logs/$log" | sed -n 's/.*"next_offset":\([0-9]*\).*/\1/p;/log_not_found/c0'; }
# Waits until the log has this many records, for up to a minute.
until_there_are() {
  for _ in $(seq 600); do [ "$(count)" -lt "$1" ] || return 0; sleep 0.1; done
  echo "only $(count) of $1 records after a minute"; tail -n 5 "$said"; exit 1
}
