#!/bin/sh
# Makes the image's root file system: /opt/frostline, the shared libraries that its files load, certificate
# authorities, and the files that name the user. Runs in a Debian stage of the Dockerfile.
#
# usage: rootfs.sh FOLDER
set -eu

root=${1:?usage: rootfs.sh FOLDER}
user=65532

if [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends ca-certificates
fi

mkdir -p "$root/etc/ssl/certs" "$root/tmp" "$root/models" "$root/proc" "$root/dev" "$root/sys"
chmod 1777 "$root/tmp"
cp -a --parents /opt/frostline "$root"
chmod -R go+rX,go-w "$root/opt/frostline"

# Every library that the loader finds for the binary and the libraries, by the path it is found at. The driver's
# (libcuda) is not here: the container runtime brings it.
export LD_LIBRARY_PATH=/opt/frostline/lib
find /opt/frostline -type f \( -name '*.so*' -o -path '*/bin/*' \) -exec ldd {} + 2>/dev/null |
    awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\/lib.*ld-linux/ { print $1 }' | sort -u |
    while read -r library; do
        case $library in /opt/frostline/*) continue ;; esac
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
        # Its package's licence: by the path as the package has it, which may lie below /usr.
        package=$(dpkg-query --search "$library" "/usr$library" "${library#/usr}" 2>/dev/null | head -n 1 | cut -d: -f1)
        [ -z "$package" ] || cp -L "/usr/share/doc/$package/copyright" "$root/opt/frostline/licences/debian-$package.txt"
    done
cp -L /usr/share/doc/ca-certificates/copyright "$root/opt/frostline/licences/debian-ca-certificates.txt"
chmod -R go+rX,go-w "$root/opt/frostline/licences"

cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
printf 'root:x:0:0:root:/:/nonexistent\nfrostline:x:%s:%s:frostline:/:/nonexistent\n' $user $user >"$root/etc/passwd"
printf 'root:x:0:\nfrostline:x:%s:\n' $user >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
cp /etc/os-release "$root/etc/os-release"

# It must start here already, or the image never will.
chroot "$root" /opt/frostline/bin/frostline --version
