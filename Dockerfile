# The mesh server. Two stages: the wheels of both distributions are built and installed into a
# virtual environment in the first; the second gets that folder and nothing of the build. torch is
# an extra of the client library and not in here.
#
#   docker build -t boltz-mesh .            anywhere with a registry
#   tools/build_image.sh                    without registry or daemon (Debian, root)
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /build
RUN python3 -m venv /opt/boltz-mesh
COPY LICENSE README.md pyproject.toml ./
COPY client_sdk client_sdk
COPY src src
RUN /opt/boltz-mesh/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /build/wheels ./client_sdk . \
    && /opt/boltz-mesh/bin/pip install --no-cache-dir /build/wheels/*.whl \
    && /opt/boltz-mesh/bin/pip check

FROM ${BASE}
# A number, so that Kubernetes can verify runAsNonRoot without reading /etc/passwd.
RUN useradd --no-log-init --uid 10001 --user-group --no-create-home \
      --home-dir /var/lib/boltz-mesh --shell /usr/sbin/nologin boltz-mesh \
    && install -d -m 0700 -o boltz-mesh -g boltz-mesh /var/lib/boltz-mesh
COPY --from=build /opt/boltz-mesh /opt/boltz-mesh
COPY deploy/health_probe.py /opt/boltz-mesh/health_probe.py
ENV PATH=/opt/boltz-mesh/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MESH_LISTEN__HOST=0.0.0.0 \
    MESH_LISTEN__HEALTH_PORT=7445
USER 10001:10001
# Keys, blobs and the embedded database live in boltz-data under the working directory.
WORKDIR /var/lib/boltz-mesh
VOLUME /var/lib/boltz-mesh
# Mutual TLS, enrolment, and health for probes without a certificate. Clients must reach the first
# two under a name from MESH_LISTEN__NAMES, since it stands in the server's certificate.
EXPOSE 7443 7444 7445
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "/opt/boltz-mesh/health_probe.py"]
ENTRYPOINT ["boltz-mesh"]
CMD ["up"]
