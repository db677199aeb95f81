#!/usr/bin/env bash
# Makes a release: tag, images, chart, wheels, licences, bill of materials, checksums, signatures.
#
# usage: release.sh [--dry] [--binary FILE] [--out FOLDER]
#
# --dry makes what needs no registry and says of the rest what would be done: nothing is tagged, pushed or signed. Without
# it the tree must be clean, and these must be set:
#   REGISTRY        where images and the chart go, such as registry.example/frostline
#   SIGNING_KEY     the GPG key that signs the checksums and the tag
# Optional: RUST_IMAGE, PYTHON_IMAGE, DEBIAN_IMAGE, each a base image by digest (NAME@sha256:...). Without them the images
# are built on tags, and the release says so.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
python=${PYTHON:-python3}
dry=false binary=target/release/frostline out=
while [ $# -gt 0 ]; do
    case $1 in
    --dry) dry=true ;;
    --binary) binary=$2 && shift ;;
    --out) out=$2 && shift ;;
    *) echo "release: $1 is not known" >&2 && exit 2 ;;
    esac
    shift
done
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
out=${out:-target/release-$version}
tag=v$version
say() { printf '== %s\n' "$*"; }
fail() { printf 'release: %s\n' "$*" >&2 && exit 1; }
# What leaves this machine, or cannot be undone.
outward() { if $dry; then printf '   would run: %s\n' "$*"; else "$@"; fi; }

if ! $dry; then
    [ -z "$(git status --porcelain)" ] || fail "the tree has changes that are not committed"
    [ -n "${REGISTRY:-}" ] || fail "REGISTRY is not set"
    [ -n "${SIGNING_KEY:-}" ] || fail "SIGNING_KEY is not set"
    grep -q "^## $version" CHANGELOG.md || fail "CHANGELOG.md has no chapter $version"
    git rev-parse -q --verify "refs/tags/$tag" >/dev/null && fail "$tag is there already"
fi
[ -x "$binary" ] || fail "there is no $binary: make build"
rm -rf "$out"
mkdir -p "$out"
registry=${REGISTRY:-registry.example/frostline}
revision=$(git rev-parse HEAD)

say "git tag $tag"
outward git tag --sign --local-user "${SIGNING_KEY:-KEY}" --message "Frostline $version" "$tag"

say "binary"
mkdir "$out/frostline-$version"
strip -o "$out/frostline-$version/frostline" "$binary"
cp LICENSE README.md CHANGELOG.md "$out/frostline-$version/"
"$python" deploy/release/licences.py "$out/frostline-$version/THIRD_PARTY.txt"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -C "$out" \
    -czf "$out/frostline-$version-$(uname -m)-linux.tar.gz" "frostline-$version"
cp LICENSE "$out/frostline-$version/THIRD_PARTY.txt" "$out/"
rm -r "$out/frostline-$version"

say "bill of materials (CycloneDX)"
if command -v cargo-cyclonedx >/dev/null || [ -x target/tools/bin/cargo-cyclonedx ]; then
    PATH=$PWD/target/tools/bin:$PATH cargo cyclonedx --quiet --format json --override-filename "frostline-$version.cdx"
    mv "frostline-$version.cdx.json" "$out/"
else
    $dry || fail "cargo-cyclonedx is not there: cargo install --locked --root target/tools cargo-cyclonedx"
    echo "   would run: cargo cyclonedx (not installed: cargo install --locked --root target/tools cargo-cyclonedx)"
fi

say "images"
for target in cpu openvino gpu; do
    arguments=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision"
        --build-arg "CREATED=$(date -u -d "@$(git log -1 --format=%ct)" +%Y-%m-%dT%H:%M:%SZ)")
    for base in RUST_IMAGE PYTHON_IMAGE DEBIAN_IMAGE; do
        case ${!base:-} in
        *@sha256:*) arguments+=(--build-arg "$base=${!base}") ;;
        "") echo "   $base is not named by digest: built on its tag" ;;
        *) fail "$base is ${!base}: not a digest" ;;
        esac
    done
    name=$registry:$version$([ "$target" = cpu ] || echo "-$target")
    outward docker build --target "$target" "${arguments[@]}" --tag "$name" .
    outward docker push "$name"
done

say "chart"
"$python" deploy/release/chart.py deploy/helm/frostline "$out"
outward helm push "$out/frostline-$version.tgz" "oci://${registry%/*}/charts"

say "wheels"
"$python" deploy/release/wheel.py "$binary" "$out" >/dev/null
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$out" deploy/clients/python
outward "$python" -m twine upload "$out"/*.whl

say "checksums"
(cd "$out" && find . -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs sha256sum >SHA256SUMS && cat SHA256SUMS)

say "signatures"
outward gpg --local-user "${SIGNING_KEY:-KEY}" --armor --detach-sign "$out/SHA256SUMS"
outward git push origin "$tag"
say "done: $out"
