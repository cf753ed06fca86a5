# Two targets, one way to install: `.ci/install`, the same as `make`, for a user without rights.
#
#   docker build --target cuda -t fairway:cuda .     docker run --rm --gpus all ... fairway:cuda run baseline --scale one-gpu
#   docker build --target cpu -t fairway:cpu --build-arg TORCH_INDEX=... .
#                                                    docker run --rm -v fairway-store:/store fairway:cpu run quickstart
#
# They differ in where torch comes from only: plain PyPI has the CUDA build. TORCH_INDEX is the address of PyTorch's own
# index of CPU builds; without it the cpu image works too, and is as large as the other.
FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
# git: the commit goes into every record. A compiler: torch.compile asks for one.
RUN apt-get update && apt-get install -y --no-install-recommends git gcc g++ libc6-dev && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 fairway && mkdir /store /app && chown fairway /store /app
USER fairway
WORKDIR /app
ENV PATH=/app/.venv/bin:$PATH
COPY --chown=fairway requirements.lock pyproject.toml ./
COPY --chown=fairway .ci/install .ci/install

FROM base AS packages-cpu
ARG TORCH_INDEX=""
RUN TORCH_INDEX="$TORCH_INDEX" .ci/install .venv

FROM base AS packages-cuda
RUN .ci/install .venv

FROM packages-cuda AS cuda
COPY --chown=fairway . .
RUN .ci/install .venv
# The store is `.fairway` in the folder that a command starts in.
VOLUME /store
WORKDIR /store
ENTRYPOINT ["fairway"]
CMD ["run", "quickstart"]

# What a Docker or Kubernetes pool starts for each stage: the command comes from the deployment.
FROM cuda AS job
ENTRYPOINT []
CMD []

# The last target is what `docker build .` makes.
FROM packages-cpu AS cpu
COPY --chown=fairway . .
RUN .ci/install .venv
VOLUME /store
WORKDIR /store
ENTRYPOINT ["fairway"]
CMD ["run", "quickstart"]
