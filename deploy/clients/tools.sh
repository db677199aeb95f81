#!/bin/bash
# What grpcurl, ghz and grpc-health-probe ask of a server with TLS and tokens, by reflection and by a protoset.
#
# usage: deploy/clients/tools.sh HOST:PORT CA TOKEN PROTOSET IMAGE
#
#   CA        the authorities to trust, PEM
#   TOKEN     a file with the token
#   PROTOSET  descriptors of the API; `grpcurl … -protoset-out frostline.protoset describe` writes them from a server that
#             has reflection, and protoc --include_imports --descriptor_set_out from proto/
#
# The programs are those of deploy/install_tools.sh, else those on the path.
set -euo pipefail

address=${1:?usage: tools.sh HOST:PORT CA TOKEN PROTOSET IMAGE} ca=${2:?CA} token=${3:?TOKEN}
protoset=${4:?PROTOSET} image=${5:?IMAGE}
root=$(cd "$(dirname "$0")/../.." && pwd)
export PATH=$root/target/tools:$PATH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Pictures and tokens go by file or variable: an argument can be too long, and everybody on the machine may read it.
printf '{"image": {"encoded": "%s"}, "options": {"omit_masks": true}}' "$(base64 <"$image" | tr -d '\n')" >"$work/detect.json"
(umask 077 && printf '{"authorization": "Bearer %s"}' "$(cat "$token")" >"$work/metadata.json")
FROSTLINE_TOKEN=$(cat "$token")
export FROSTLINE_TOKEN
bearer=(-expand-headers -H 'authorization: Bearer ${FROSTLINE_TOKEN}')
method=frostline.v1.VisionService/Detect

echo '# grpcurl, reflection'
grpcurl -cacert "$ca" "${bearer[@]}" "$address" list
grpcurl -cacert "$ca" "${bearer[@]}" -d @ "$address" "$method" <"$work/detect.json" | grep '"label"'
echo '# grpcurl, protoset'
grpcurl -cacert "$ca" "${bearer[@]}" -protoset "$protoset" -d @ "$address" "$method" <"$work/detect.json" | grep '"label"'
echo '# grpcurl, no token'
grpcurl -cacert "$ca" -protoset "$protoset" -d @ "$address" "$method" <"$work/detect.json" 2>&1 | grep -E 'Code|Message' || true

# One picture over and over: enough to see that ghz gets in. How fast the server is, it does not tell, for equal images in
# flight share one run of the backbone; ghz_data.py writes messages with an image each.
for descriptors in reflection protoset; do
    echo "# ghz, $descriptors"
    case $descriptors in
    # ghz sends the calls' metadata with its reflection as well only where it is told to.
    reflection) how=(--reflect-metadata "$(cat "$work/metadata.json")") ;;
    protoset) how=(--protoset "$protoset") ;;
    esac
    ghz --cacert "$ca" "${how[@]}" --call "${method/\//.}" -M "$work/metadata.json" -D "$work/detect.json" \
        --total 64 --concurrency 4 --format json "$address" >"$work/report.json"
    python3 -c 'import json, sys
report = json.load(open(sys.argv[1]))
print("calls", report["count"], "codes", json.dumps(report["statusCodeDistribution"]))' "$work/report.json"
done

for service in '' frostline.v1.VisionService; do
    echo "# grpc-health-probe ${service:-the server}"
    grpc-health-probe -addr "$address" -tls -tls-ca-cert "$ca" -service "$service" 2>&1
done
# Heads are told of only to callers that may use them.
echo '# grpc-health-probe frostline.head.objects'
grpc-health-probe -addr "$address" -tls -tls-ca-cert "$ca" -rpc-header "authorization: Bearer $FROSTLINE_TOKEN" \
    -service frostline.head.objects 2>&1
