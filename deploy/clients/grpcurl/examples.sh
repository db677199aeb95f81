#!/bin/sh
# What grpcurl can ask a server by reflection alone: both protocols, health, and a picture's detections.
#
# usage: deploy/clients/grpcurl/examples.sh ADDRESS IMAGE [FLAG...]
#
# Flags go to grpcurl: -cacert ca.pem -H 'authorization: Bearer TOKEN' for a server with TLS and tokens; the default is
# -plaintext. GRPCURL names the program.
set -eu

address=${1:?usage: examples.sh ADDRESS IMAGE [FLAG...]} image=${2:?an image file}
shift 2
[ $# -gt 0 ] || set -- -plaintext
grpcurl=${GRPCURL:-grpcurl}
picture=$(base64 <"$image" | tr -d '\n')

echo '# services'
"$grpcurl" "$@" "$address" list
echo '# health'
"$grpcurl" "$@" "$address" grpc.health.v1.Health/Check
echo '# heads'
"$grpcurl" "$@" "$address" frostline.v1.ModelService/ListHeads | grep -E '"(name|task)"'
# The request comes from standard input: a picture is longer than an argument may be.
echo '# Detect'
printf '{"image": {"encoded": "%s"}, "options": {"omit_masks": true}}' "$picture" \
    | "$grpcurl" "$@" -d @ "$address" frostline.v1.VisionService/Detect
echo '# ModelInfer of the Open Inference Protocol'
printf '{"model_name": "objects", "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1],
  "contents": {"bytes_contents": ["%s"]}}], "outputs": [{"name": "scores"}, {"name": "labels"}]}' "$picture" \
    | "$grpcurl" "$@" -d @ "$address" inference.GRPCInferenceService/ModelInfer
