#!/bin/sh
# Builds the pinned command-line tools that the deployment tests use into target/tools, from the Go module proxy.
# Does nothing for a tool that is there already in its version.
#
# usage: deploy/install_tools.sh [NAME...]
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
folder=${FROSTLINE_TOOLS:-$root/target/tools}

# name, Go package, version
tools='
kubeconform github.com/yannh/kubeconform/cmd/kubeconform v0.8.0
helm        helm.sh/helm/v4/cmd/helm                     v4.3.1
grpcurl     github.com/fullstorydev/grpcurl/cmd/grpcurl  v1.9.4
ghz         github.com/bojand/ghz/cmd/ghz                v0.121.0
grpc-health-probe github.com/grpc-ecosystem/grpc-health-probe v0.4.61
promtool    github.com/prometheus/prometheus/cmd/promtool v0.316.0
'

wanted=" $* "
mkdir -p "$folder"
echo "$tools" | while read -r name package version; do
    [ -n "$name" ] || continue
    case $wanted in "  " | *" $name "*) ;; *) continue ;; esac
    if [ -x "$folder/$name" ] && go version -m "$folder/$name" 2>/dev/null | grep -q "[[:space:]]mod[[:space:]].*[[:space:]]$version[[:space:]]"; then
        continue
    fi
    echo "building $name $version"
    GOBIN=$folder GOFLAGS=-trimpath CGO_ENABLED=0 go install -ldflags='-s -w' "$package@$version"
done
