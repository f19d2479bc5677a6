# syntax=docker/dockerfile:1
# Images of the control plane (the default), the analytics service and the agent:
#
#   docker build --tag midcourse .
#   docker build --tag midcourse-analytics --target analytics .
#   docker build --tag midcourse-agent --target agent .
#
# docs/deploy.md tells how they are run.

# What is deployed for long is better pinned by digest too: python:…@sha256:…
ARG PYTHON_IMAGE=python:3.13.9-slim-trixie

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY analytics_service analytics_service
COPY control_plane control_plane
COPY grpc_runtime grpc_runtime
COPY protos/midcourse protos/midcourse
COPY trainer_agent trainer_agent
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip wheel --no-deps --wheel-dir /dist .

# An environment has the locked versions of what its role needs, and no compiler: wheels alone.
FROM ${PYTHON_IMAGE} AS environment
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ONLY_BINARY=:all:
COPY constraints.txt /constraints.txt
COPY --from=wheel /dist /dist
RUN python -m venv --without-pip /opt/midcourse

FROM environment AS control-plane-environment
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/midcourse/bin/python install --constraint /constraints.txt \
        "midcourse[server,postgres,otel] @ file://$(echo /dist/midcourse-*.whl)"

FROM environment AS analytics-environment
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/midcourse/bin/python install --constraint /constraints.txt \
        "midcourse[analytics,postgres,otel] @ file://$(echo /dist/midcourse-*.whl)"

FROM environment AS agent-environment
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m pip --python /opt/midcourse/bin/python install --constraint /constraints.txt \
        "midcourse[agent,otel] @ file://$(echo /dist/midcourse-*.whl)"

FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="midcourse" \
      org.opencontainers.image.description="Watch and steer running training jobs over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The number is fixed, for those who own what is mounted. The directory is the only one written to.
RUN groupadd --gid 10001 midcourse \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/midcourse \
        --shell /usr/sbin/nologin midcourse \
    && install --directory --mode=0700 --owner=10001 --group=10001 /var/lib/midcourse
ENV PATH=/opt/midcourse/bin:$PATH \
    HOME=/var/lib/midcourse \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/midcourse
USER 10001:10001

FROM runtime AS agent
COPY --from=agent-environment /opt/midcourse /opt/midcourse
ENTRYPOINT ["python", "-P", "-m", "trainer_agent"]

FROM runtime AS analytics
COPY --from=analytics-environment /opt/midcourse /opt/midcourse
ENV MIDCOURSE_ANALYTICS_DATABASE=/var/lib/midcourse/analytics.db \
    MIDCOURSE_ANALYTICS_HEALTH_LISTEN=127.0.0.1:50080 \
    MIDCOURSE_ANALYTICS_LISTEN=0.0.0.0:50052
VOLUME ["/var/lib/midcourse"]
EXPOSE 50052
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["midcourse", "health", "--address", "127.0.0.1:50080"]
ENTRYPOINT ["midcourse"]
CMD ["analytics", "serve"]

FROM runtime AS control-plane
COPY --from=control-plane-environment /opt/midcourse /opt/midcourse
# It refuses to start on this address without TLS and authentication, unless it is told to.
ENV MIDCOURSE_DATABASE=/var/lib/midcourse/control.db \
    MIDCOURSE_HEALTH_LISTEN=127.0.0.1:50080 \
    MIDCOURSE_LISTEN=0.0.0.0:50051
VOLUME ["/var/lib/midcourse"]
EXPOSE 50051
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["midcourse", "health", "--address", "127.0.0.1:50080"]
ENTRYPOINT ["midcourse"]
CMD ["serve"]
