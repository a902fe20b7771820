# The api's image: HTTP, dashboard, sweeper, migrations and the command `titer`. Nothing here loads tensors.
# Build from the top of the repository: docker build -f docker/api.Dockerfile -t titer-api .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}

ENV PATH=/opt/titer/bin:$PATH \
    HF_HOME=/var/lib/titer/cache/huggingface \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# New volumes take the owner of the folder they cover, so the folders are made here, and both images agree
# on the number: what the api stores, the worker reads.
RUN groupadd --gid 10001 titer \
 && useradd --uid 10001 --gid titer --home-dir /var/lib/titer --no-create-home --shell /usr/sbin/nologin titer \
 && install -d -o titer -g titer /var/lib/titer /var/lib/titer/storage /var/lib/titer/cache \
 && python3 -m venv /opt/titer

# Dependencies first, on an empty package of the same name: they change seldom, the code daily. One stage,
# because a copied environment would be one layer that every change of the code makes anew.
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    touch README.md LICENSE && pip install --cache-dir /var/cache/pip -c constraints.txt '.[tracing]'

COPY README.md LICENSE ./
COPY migrations migrations
COPY models models
COPY api api
RUN pip install --no-cache-dir --no-deps --force-reinstall .

WORKDIR /var/lib/titer
USER titer
EXPOSE 8000
# The request log is ours; uvicorn's would tell every line twice. Open event streams would hold a stop.
CMD ["uvicorn", "--factory", "api.app:create_app", "--host", "0.0.0.0", "--port", "8000", \
     "--no-access-log", "--no-server-header", "--timeout-graceful-shutdown", "10"]
