# Two targets with one install path, the lock: `docker build --target cpu .` and `docker build --target cuda .`.
# Plain PyPI's torch for Linux carries CUDA; the CPU target takes the same version from an index of CPU builds, if one is
# given: --build-arg TORCH_INDEX=... .
FROM python:3.11-slim AS base
RUN apt-get update && apt-get install --yes --no-install-recommends make git gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home fairway && mkdir /app && chown fairway /app
USER fairway
WORKDIR /app
ENV PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 PIP_NO_CACHE_DIR=1

FROM base AS cpu
ARG TORCH_INDEX=""
COPY --chown=fairway requirements.lock ./
RUN python -m venv .venv && if [ -n "$TORCH_INDEX" ]; then \
      .venv/bin/python -m pip install --quiet --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.lock)"; fi
COPY --chown=fairway . .
RUN make install
ENTRYPOINT [".venv/bin/fairway"]
CMD ["doctor"]

FROM base AS cuda
COPY --chown=fairway . .
RUN make install
ENTRYPOINT [".venv/bin/fairway"]
CMD ["doctor"]
