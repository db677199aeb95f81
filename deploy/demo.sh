#!/bin/sh
# Starts a server with the embedded demo models on a free port, sends the sample images and clips through gRPC, and
# stops it.
#
#   deploy/demo.sh BINARY OUT
set -eu
binary=$1 out=$2
mkdir -p "$out"
log=$out/server.log
: >"$log" # an earlier run's address must not be read
"$binary" serve --listen 127.0.0.1:0 2>"$log" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT

address=
while [ -z "$address" ]; do
    kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
    address=$(sed 's/\x1b\[[0-9;]*m//g' "$log" | sed -n 's/.* ready .*address=\([0-9.:]*\).*/\1/p')
    [ -n "$address" ] || sleep 0.02
done
sed 's/\x1b\[[0-9;]*m//g' "$log" | sed -n 's/.* ready /server ready: /p'

clips=
for clip in models/demo/samples/clip-*/; do clips="$clips --clip $clip"; done
# shellcheck disable=SC2086
"$binary" analyze --addr "http://$address" models/demo/samples $clips --out "$out"

kill -TERM "$server"
wait "$server"
trap - EXIT
echo "server stopped cleanly; annotated pictures are in $out"
