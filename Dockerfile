# One image for the agent and the controller, for amd64 and arm64. Why it is built so: docs/image.md.
# tests/test_image.py performs the build stage of this file where there is no container engine.

# Debian 13's Python 3.13 without shell, package manager or compiler; its ctypes finds libnvidia-ml.so.1, which the
# NVIDIA container toolkit or a mount brings.
FROM gcr.io/distroless/python3-debian13:nonroot@sha256:774595d652a294b54c9bd575b2d9fdd1a4b47547dc17b8bfa4c0e953c64855b3 AS base

# Every dependency is a wheel, so nothing of the other architecture runs here: no emulation.
FROM --platform=$BUILDPLATFORM docker.io/library/python:3.13.16-slim-trixie@sha256:bf44cdfcb76cd3b41e879bc058fc37ec5872002ccfde7fcb765e218cde0cd79c AS build
ARG TARGETARCH
ENV UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY scripts/uv.txt scripts/uv.txt
# hadolint ignore=DL3042
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --quiet --only-binary=:all: --require-hashes --requirement=scripts/uv.txt

COPY pyproject.toml uv.lock ./
RUN case "$TARGETARCH" in \
        amd64) machine=x86_64 ;; \
        arm64) machine=aarch64 ;; \
        *) echo "TARGETARCH is '$TARGETARCH': the image is built for amd64 and arm64, by BuildKit" >&2; exit 1 ;; \
    esac \
    && /opt/uv/bin/uv export --quiet --frozen --no-dev --no-emit-project --extra=cel --output-file=/opt/requirements.txt \
    && /opt/uv/bin/uv pip install --quiet --python=python3 --python-platform="$machine-manylinux_2_28" --only-binary=:all: \
        --require-hashes --no-deps --target=/opt/claimscope/lib --requirement=/opt/requirements.txt

COPY README.md LICENSE ./
COPY exporter exporter
# The wheel of CEL's engine brings the whole tree it was built from, protobuf's and Bazel's own tests included.
RUN /opt/uv/bin/uv build --quiet --offline --wheel --out-dir=/opt/dist \
    && /opt/uv/bin/uv pip install --quiet --offline --no-cache --python=python3 --no-deps --no-index \
        --find-links=/opt/dist --target=/opt/claimscope/lib claimscope \
    && mkdir /opt/claimscope/bin \
    && sed '1s|.*|#!/usr/bin/python3|' /opt/claimscope/lib/bin/claimscope >/opt/claimscope/bin/claimscope \
    && chmod 755 /opt/claimscope/bin/claimscope \
    && rm -rf /opt/claimscope/lib/bin /opt/claimscope/lib/.lock /opt/claimscope/lib/bazel-project \
        /opt/claimscope/lib/claimscope-*.dist-info/uv_cache.json
COPY --chmod=0644 scripts/healthcheck.py /opt/claimscope/bin/healthcheck.py

# Compiled here, because the root file system is read-only where it runs; never checked against the source, so that
# times of files do not matter. The base brings its standard library uncompiled.
COPY --from=base /usr/lib/python3.13 /opt/base/usr/lib/python3.13
RUN python3 -m compileall -q -j0 --invalidation-mode=unchecked-hash /opt/claimscope/lib \
    && python3 -m compileall -q -j0 --invalidation-mode=unchecked-hash -s /opt/base -p / /opt/base/usr/lib/python3.13 \
    && find /opt/base -not -type d -not -name '*.pyc' -delete

# With a C compiler for the simulated GPUs: `docker build --target demo`. Not published.
FROM docker.io/library/python:3.13.16-slim-trixie@sha256:bf44cdfcb76cd3b41e879bc058fc37ec5872002ccfde7fcb765e218cde0cd79c AS demo
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s /usr/local/bin/python3 /usr/bin/python3
COPY --from=build /opt/claimscope /opt/claimscope
ENV PATH=/opt/claimscope/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/claimscope/lib \
    PYTHONSAFEPATH=1
USER 65532:65532
ENTRYPOINT ["/opt/claimscope/bin/claimscope"]
CMD ["demo"]

FROM base AS product
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="claimscope" \
      org.opencontainers.image.description="GPU telemetry and accounting by Kubernetes ResourceClaim" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="gcr.io/distroless/python3-debian13:nonroot"
COPY --from=build /opt/base /
COPY --from=build /opt/claimscope /opt/claimscope
ENV PATH=/opt/claimscope/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/claimscope/lib \
    PYTHONSAFEPATH=1
WORKDIR /
USER 65532:65532
EXPOSE 19400 19401
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["/usr/bin/python3", "/opt/claimscope/bin/healthcheck.py"]
ENTRYPOINT ["/opt/claimscope/bin/claimscope"]
