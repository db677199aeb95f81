#!/usr/bin/env bash
# The Noto Color Emoji font, which draws the generated data: installed where apt can, else named.
set -euo pipefail
for path in /usr/share/fonts/truetype/noto /usr/share/fonts/noto /usr/share/fonts/google-noto-color-emoji-fonts; do
	[ -e "$path/NotoColorEmoji.ttf" ] && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -q fonts-noto-color-emoji >/dev/null; }
	install 2>/dev/null || { apt-get update -q >/dev/null && install; } && exit 0
fi
echo 'Noto Color Emoji is not installed (Debian: apt-get install fonts-noto-color-emoji); tests that draw are skipped' >&2
