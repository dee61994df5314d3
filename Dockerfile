# The service for several workers: gunicorn, one port, nothing written to disk. Build: docker build -t revocation-service .
# It starts only with REVOCATION_REDIS_URL and REVOCATION_API_KEYS (or their _FILE forms) set.

FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY client client
COPY pyproject.toml setup.cfg ./
COPY revocation_service revocation_service
RUN pip wheel --quiet --no-deps --wheel-dir /wheels ./client .
# The wheels are named by path, so that no index is ever asked for our own names.
RUN python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --quiet \
    /wheels/revocation_client-*.whl "$(echo /wheels/revocation_service-*.whl)[gunicorn]"

FROM python:3.13-slim
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin revocation
COPY --from=build /opt/venv /opt/venv
COPY deploy/gunicorn.conf.py deploy/healthcheck.py /app/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    REVOCATION_HOST=0.0.0.0 \
    REVOCATION_PORT=8080 \
    WEB_CONCURRENCY=2
WORKDIR /app
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# Whether the process lives, not whether Redis does: what an orchestrator does about it is a restart, which mends no Redis.
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 CMD ["python", "-I", "/app/healthcheck.py"]
CMD ["gunicorn", "--config", "/app/gunicorn.conf.py", "revocation_service.web.worker:worker"]
