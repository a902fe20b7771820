# The worker's image: training, evaluation, and the built-in inference server. The only home of torch.
# Build from the top of the repository: docker build -f docker/worker.Dockerfile -t titer-worker .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}

# The default index carries the CUDA build of torch. A node without GPU saves gigabytes with
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_INDEX=""

ENV PATH=/opt/titer/bin:$PATH \
    HF_HOME=/var/lib/titer/cache/huggingface \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# As in the api's image, and with the same number: what the api stores, the worker reads.
RUN groupadd --gid 10001 titer \
 && useradd --uid 10001 --gid titer --home-dir /var/lib/titer --no-create-home --shell /usr/sbin/nologin titer \
 && install -d -o titer -g titer /var/lib/titer /var/lib/titer/storage /var/lib/titer/cache \
 && python3 -m venv /opt/titer

WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    touch README.md LICENSE \
 && pip install --cache-dir /var/cache/pip ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt '.[worker,tracing,wandb]'

COPY README.md LICENSE ./
COPY migrations migrations
COPY models models
COPY api api
COPY worker worker
RUN pip install --no-cache-dir --no-deps --force-reinstall .

WORKDIR /var/lib/titer
USER titer
ENV MPLCONFIGDIR=/tmp/matplotlib
EXPOSE 8001
# One job at a time, and none fetched ahead of it. Workers are strangers: no gossip, nobody to wait for.
# Quiet leaves out the banner alone, which is no line of JSON.
CMD ["celery", "--quiet", "--app", "worker.tasks", "worker", "--pool", "prefork", "--concurrency", "1", \
     "--prefetch-multiplier", "1", "--hostname", "titer@%h", "--without-gossip", "--without-mingle", \
     "--loglevel", "INFO"]
