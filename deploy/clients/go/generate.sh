#!/bin/sh
# Generates frostlinev1/ from proto/ with pinned plugins. Needs Go, and a Python that has grpcio-tools.
#
# usage: deploy/clients/go/generate.sh [PYTHON]
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
python=${1:-python3}
plugins=$root/target/go-plugins

go version -m "$plugins/protoc-gen-go" 2>/dev/null | grep -q 'v1\.36\.12' \
    || GOBIN=$plugins go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
go version -m "$plugins/protoc-gen-go-grpc" 2>/dev/null | grep -q 'v1\.6\.0' \
    || GOBIN=$plugins go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.0

mkdir -p "$here/frostlinev1"
PATH=$plugins:$PATH "$python" -m grpc_tools.protoc "-I$root/proto" \
    --go_out="$here" --go_opt=module=frostline.example/client \
    --go-grpc_out="$here" --go-grpc_opt=module=frostline.example/client \
    $(cd "$root/proto" && echo frostline/v1/*.proto)
