#!/bin/sh
# Puts the assembler NASM into FOLDER/bin, with which JPEG decoding is built with SIMD, unless it is on the path: takes it out of
# Debian's package, without installing that. Where there is none to be had it says so, and decoding is built without.
#
# usage: fetch_nasm.sh FOLDER
set -eu

folder=${1:?usage: fetch_nasm.sh FOLDER}
if command -v nasm >/dev/null || [ -x "$folder/bin/nasm" ]; then
    exit 0
fi
# Other processors' SIMD is written in C or for the C compiler's own assembler.
[ "$(uname -m)" = x86_64 ] || exit 0
without() {
    echo "no nasm ($1): JPEG decoding is built without SIMD and takes about twice as long" >&2
    exit 0
}
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    without "this is no Debian; install it by the system's package manager"
fi
mkdir -p "$folder"
work=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "fetching nasm"
download() { (cd "$work" && apt-get download -qq nasm >/dev/null 2>&1); }
# A fresh system knows of no packages until it is told to look, which takes root.
download || { [ "$(id -u)" = 0 ] && apt-get update -qq >/dev/null 2>&1 && download; } || without "apt-get download failed"
dpkg-deb --extract "$work"/nasm_*.deb "$work/unpacked"
mkdir -p "$folder/bin"
"$work/unpacked/usr/bin/nasm" -v >/dev/null 2>&1 || without "Debian's does not run here"
mv "$work/unpacked/usr/bin/nasm" "$folder/bin/nasm"
