#!/usr/bin/env bash
# Starts a server with the demo models, puts every load of this folder on it with ghz, and keeps the reports.
# usage: run.sh BINARY OUT [CONFIG...]
set -euo pipefail
binary=$1 out=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
configs=("$@")
if [ ${#configs[@]} -eq 0 ]; then
	configs=("$here"/{one-head,three-heads,mixed,overload,ramp}.json)
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
(cd "$here" && go build -o "$out/load" .)
# The descriptors that the binary's own build wrote: the newest.
protoset=$(ls -t "$(dirname "$binary")"/build/frostline-*/out/frostline.protoset | head -n 1)
"$binary" --set telemetry.format=json serve --listen 127.0.0.1:0 2>"$out/server.log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
for _ in $(seq 300); do
	address=$(sed -nE 's/.*"message":"ready".*"address":"([^"]+)".*/\1/p' "$out/server.log")
	[ -n "$address" ] && break
	kill -0 "$server" || { cat "$out/server.log"; exit 1; }
	sleep 0.1
done
[ -n "$address" ] || { echo "the server is not ready:"; cat "$out/server.log"; exit 1; }
"$out/load" -host "$address" -protoset "$protoset" -out "$out" "${configs[@]}"
kill -TERM "$server"
wait "$server"
trap - EXIT
echo "reports with plots: $out/*.html"
