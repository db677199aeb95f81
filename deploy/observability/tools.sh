#!/usr/bin/env bash
# tools.sh DIR: puts promtool and prometheus of Debian's package into DIR, unless they are there; nothing else on the
# machine changes. Elsewhere than on Debian, put both on the PATH and they are linked.
set -euo pipefail
dir=${1:?folder}
mkdir -p "$dir"
[ -x "$dir/promtool" ] && [ -x "$dir/prometheus" ] && exit 0
if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
    ln -sf "$(command -v promtool)" "$(command -v prometheus)" "$dir/"
    exit 0
fi
command -v apt-get >/dev/null || { echo "promtool and prometheus are not on the PATH, and this is not Debian" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq; apt-get download -qq prometheus; }
dpkg-deb -x prometheus_*.deb x
cd - >/dev/null
cp "$work/x/usr/bin/promtool" "$work/x/usr/bin/prometheus" "$dir/"
