#!/usr/bin/env bash
# Has promtool check what a server of the demo models tells a scraper.
#
# usage: deploy/observability/check_metrics.sh BINARY PROMTOOL
set -euo pipefail

binary=${1:?usage: check_metrics.sh BINARY PROMTOOL} promtool=${2:?PROMTOOL}
log=$(mktemp)
"$binary" serve --listen 127.0.0.1:0 --admin 127.0.0.1:0 --color never 2>"$log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -f "$log"' EXIT
# Until it is ready, or over.
until grep -q ': ready ' "$log"; do
    kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
    sleep 0.1
done
admin=$(sed -n 's/.*admin port address=\([0-9.:]*\).*/\1/p' "$log")
"${PYTHON:-python3}" -c 'import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode(), end="")' \
    "http://$admin/metrics" | "$promtool" check metrics
