#!/bin/sh
# Installs HAProxy and nginx from Debian, where they are missing, without starting them as services.
set -eu

missing=
command -v haproxy >/dev/null || missing="$missing haproxy"
command -v nginx >/dev/null || missing="$missing nginx-light"
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "install.sh: run as root, or install by hand:$missing" >&2; exit 1; }
apt-get update -qq
# RUNLEVEL=1 keeps the packages' services from starting.
# shellcheck disable=SC2086
RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
