# The service: one process, one port, nothing written to disk. Build: docker build -t revocation-service .
# It starts only with REVOCATION_REDIS_URL and REVOCATION_API_KEYS (or their _FILE forms) set.
# To use more cores, run more containers: docs/decisions/18-one-process-per-container.md.

FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY client client
COPY pyproject.toml setup.cfg ./
COPY revocation_service revocation_service
RUN pip wheel --quiet --no-deps --wheel-dir /wheels ./client .
# The wheels are named by path, so that pip does not ask an index for our own names.
RUN python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --quiet \
    /wheels/revocation_client-*.whl /wheels/revocation_service-*.whl

FROM python:3.13-slim
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin revocation
COPY --from=build /opt/venv /opt/venv
COPY deploy/healthcheck.py /app/
# RES_OPTIONS: by default glibc waits five seconds for a lost DNS answer.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    RES_OPTIONS="timeout:1 attempts:3" \
    REVOCATION_HOST=0.0.0.0 \
    REVOCATION_PORT=8080 \
    REVOCATION_REQUIRE_API_KEYS=true
WORKDIR /app
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# Liveness of the process, not of Redis: an orchestrator answers a failed check with a restart, which does not help Redis.
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 CMD ["python", "-I", "/app/healthcheck.py"]
CMD ["revocation-service", "serve"]
