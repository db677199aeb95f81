# syntax=docker/dockerfile:1
#
# Targets: `cpu` (default, last), `openvino` and `gpu`. All hold the binary, the ONNX Runtime library and the few system
# libraries that these load: no shell, no package manager. The demo models are inside the binary. `openvino` is `cpu` and
# OpenVINO's plugin beside the library, which a trial at the start takes where it is faster.
#
#   docker build --target cpu -t frostline:cpu .
#   docker build --target openvino -t frostline:openvino .
#   docker build --target gpu -t frostline:gpu .
#   docker run --rm --read-only --cap-drop=ALL -p 127.0.0.1:8461:8461 -e FROSTLINE_SERVER_INSECURE=true frostline:cpu
#
# The server refuses to listen beyond loopback without TLS or authorization unless it is told so, in a container too.
# Probes and metrics over HTTP: -e FROSTLINE_TELEMETRY_ADMIN=0.0.0.0:8462 -p 127.0.0.1:8462:8462. The health check asks
# where the variables say that the server listens, and the admin port where it speaks TLS; with a configuration file, name
# it in FROSTLINE_CONFIG.

# Base images by tag, so that a build takes today's security updates; a release names them by digest, which makes it
# repeatable: --build-arg RUST_IMAGE=docker.io/library/rust@sha256:... and so on (deploy/release/release.sh takes them from the
# variables of these names).
ARG RUST_IMAGE=docker.io/library/rust:1.95-slim-bookworm
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim-bookworm
ARG DEBIAN_IMAGE=docker.io/library/debian:bookworm-slim
# `build` compiles here; `prebuilt` takes target/image/frostline and target/image/libonnxruntime.so as they are.
ARG BINARY=build
ARG LIBRARY=onnxruntime

# --- the binary -------------------------------------------------------------------------------------------------------
FROM ${RUST_IMAGE} AS build
WORKDIR /src
ENV CARGO_PROFILE_RELEASE_STRIP=symbols
# NASM gives JPEG decoding its SIMD; Python gathers the licences.
RUN { command -v nasm && command -v python3; } >/dev/null \
    || { apt-get update -qq && apt-get install -y -qq --no-install-recommends nasm python3 && rm -rf /var/lib/apt/lists/*; }
# The dependencies are a layer of their own: it is kept until the manifests or the protocol change. Tests and benchmarks
# stay outside, but the manifest names their files.
COPY Cargo.toml Cargo.lock ./
COPY proto proto
RUN mkdir -p src tests/all tests/bench tests/gpu \
    && echo 'fn main() {}' | tee src/main.rs tests/all/main.rs tests/gpu/main.rs > tests/bench/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked --bin frostline \
    && rm -rf src
COPY src src
COPY models/demo models/demo
COPY deploy/release/licences.py deploy/release/licences.py
ARG REVISION=unknown
RUN touch src/main.rs src/lib.rs \
    && FROSTLINE_COMMIT=${REVISION} cargo build --release --locked --bin frostline \
    && cp target/release/frostline /frostline \
    && python3 deploy/release/licences.py /THIRD_PARTY.txt

FROM scratch AS prebuilt
COPY target/image/ /

FROM ${BINARY} AS binary

# --- ONNX Runtime, from its wheels ------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS onnxruntime
COPY deploy/fetch_onnxruntime.sh /fetch_onnxruntime.sh
RUN /fetch_onnxruntime.sh /out python3 onnxruntime && mv /out/* /

FROM ${LIBRARY} AS library

# The plugin alone, with what it loads and its notices.
FROM ${PYTHON_IMAGE} AS plugin
COPY deploy/fetch_onnxruntime.sh /fetch_onnxruntime.sh
RUN /fetch_onnxruntime.sh /opt/frostline/lib python3 openvino \
    && mkdir -p /opt/frostline/licences \
    && mv /opt/frostline/lib/openvino-third-party-programs.txt /opt/frostline/licences/

FROM ${PYTHON_IMAGE} AS onnxruntime-gpu
COPY deploy/image/gpu-requirements.txt deploy/image/fetch_gpu.sh /
RUN /fetch_gpu.sh /gpu-requirements.txt /opt/frostline/lib /opt/frostline/licences

# --- root file systems: what the two load, and nothing else -----------------------------------------------------------
FROM ${DEBIAN_IMAGE} AS rootfs-cpu
COPY deploy/image/rootfs.sh /rootfs.sh
COPY --from=binary /frostline /opt/frostline/bin/frostline
COPY --from=binary /THIRD_PARTY.txt /opt/frostline/licences/
COPY LICENSE /opt/frostline/licences/
COPY --from=library /libonnxruntime.so /opt/frostline/lib/libonnxruntime.so
COPY --from=library /onnxruntime-LICENSE /onnxruntime-ThirdPartyNotices.txt /opt/frostline/licences/
RUN /rootfs.sh /rootfs

FROM ${DEBIAN_IMAGE} AS rootfs-openvino
COPY deploy/image/rootfs.sh /rootfs.sh
COPY --from=binary /frostline /opt/frostline/bin/frostline
COPY --from=binary /THIRD_PARTY.txt /opt/frostline/licences/
COPY LICENSE /opt/frostline/licences/
COPY --from=library /libonnxruntime.so /opt/frostline/lib/libonnxruntime.so
COPY --from=library /onnxruntime-LICENSE /onnxruntime-ThirdPartyNotices.txt /opt/frostline/licences/
COPY --from=plugin /opt/frostline /opt/frostline
RUN /rootfs.sh /rootfs

FROM ${DEBIAN_IMAGE} AS rootfs-gpu
COPY deploy/image/rootfs.sh /rootfs.sh
COPY --from=binary /frostline /opt/frostline/bin/frostline
COPY --from=binary /THIRD_PARTY.txt /opt/frostline/licences/
COPY LICENSE /opt/frostline/licences/
COPY --from=onnxruntime-gpu /opt/frostline/lib /opt/frostline/lib
COPY --from=onnxruntime-gpu /opt/frostline/licences /opt/frostline/licences
RUN /rootfs.sh /rootfs

# --- the images -------------------------------------------------------------------------------------------------------
FROM scratch AS gpu
ARG VERSION=0.0.0-dev
ARG REVISION=unknown
ARG CREATED=
ARG SOURCE=
ARG DEBIAN_IMAGE
LABEL org.opencontainers.image.title="frostline" \
      org.opencontainers.image.description="One frozen vision backbone, many light heads, one gRPC service (CUDA)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${DEBIAN_IMAGE}"
COPY --from=rootfs-gpu /rootfs/ /
ENV PATH=/opt/frostline/bin \
    LD_LIBRARY_PATH=/opt/frostline/lib \
    ORT_DYLIB_PATH=/opt/frostline/lib/libonnxruntime.so \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    FROSTLINE_SERVER_LISTEN=0.0.0.0:8461
USER 65532:65532
WORKDIR /
EXPOSE 8461 8462
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["/opt/frostline/bin/frostline", "health"]
ENTRYPOINT ["/opt/frostline/bin/frostline"]
CMD ["serve"]

FROM scratch AS openvino
ARG VERSION=0.0.0-dev
ARG REVISION=unknown
ARG CREATED=
ARG SOURCE=
ARG DEBIAN_IMAGE
LABEL org.opencontainers.image.title="frostline" \
      org.opencontainers.image.description="One frozen vision backbone, many light heads, one gRPC service (CPU, with OpenVINO)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${DEBIAN_IMAGE}"
COPY --from=rootfs-openvino /rootfs/ /
ENV PATH=/opt/frostline/bin \
    ORT_DYLIB_PATH=/opt/frostline/lib/libonnxruntime.so \
    FROSTLINE_SERVER_LISTEN=0.0.0.0:8461
USER 65532:65532
WORKDIR /
EXPOSE 8461 8462
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["/opt/frostline/bin/frostline", "health"]
ENTRYPOINT ["/opt/frostline/bin/frostline"]
CMD ["serve"]

FROM scratch AS cpu
ARG VERSION=0.0.0-dev
ARG REVISION=unknown
ARG CREATED=
ARG SOURCE=
ARG DEBIAN_IMAGE
LABEL org.opencontainers.image.title="frostline" \
      org.opencontainers.image.description="One frozen vision backbone, many light heads, one gRPC service (CPU)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${DEBIAN_IMAGE}"
COPY --from=rootfs-cpu /rootfs/ /
ENV PATH=/opt/frostline/bin \
    ORT_DYLIB_PATH=/opt/frostline/lib/libonnxruntime.so \
    FROSTLINE_SERVER_LISTEN=0.0.0.0:8461
USER 65532:65532
WORKDIR /
EXPOSE 8461 8462
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["/opt/frostline/bin/frostline", "health"]
ENTRYPOINT ["/opt/frostline/bin/frostline"]
CMD ["serve"]
