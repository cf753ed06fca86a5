# Two targets, one way to install: the same lock, by the same pip command, for a user without rights.
#
#   docker build --target cpu  -t fairway:cpu .      docker run --rm -v fairway-store:/store fairway:cpu run quickstart
#   docker build --target cuda -t fairway:cuda .     docker run --rm --gpus all ... fairway:cuda run baseline --scale one-gpu
#
# They differ in where torch comes from only: plain PyPI has the CUDA build, torch's own index the CPU one.
FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# git: the commit goes into every record. A compiler: torch.compile asks for one.
RUN apt-get update && apt-get install -y --no-install-recommends git gcc g++ libc6-dev && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 fairway && mkdir /store /app && chown fairway /store /app
USER fairway
WORKDIR /app
RUN python -m venv .venv
ENV PATH=/app/.venv/bin:$PATH
COPY --chown=fairway requirements.lock pyproject.toml ./

FROM base AS install-cpu
RUN version="$(sed -n 's/^torch==//p' requirements.lock)" \
 && pip install "torch==$version" --index-url https://download.pytorch.org/whl/cpu \
 && pip install -r requirements.lock

FROM base AS install-cuda
RUN pip install -r requirements.lock

FROM install-cuda AS cuda
COPY --chown=fairway . .
RUN pip install --no-deps --no-build-isolation -e .
# The store is `.fairway` in the folder that a command starts in.
VOLUME /store
WORKDIR /store
ENTRYPOINT ["fairway"]
CMD ["run", "quickstart"]

# The last target is what `docker build .` makes.
FROM install-cpu AS cpu
COPY --chown=fairway . .
RUN pip install --no-deps --no-build-isolation -e .
# The store is `.fairway` in the folder that a command starts in.
VOLUME /store
WORKDIR /store
ENTRYPOINT ["fairway"]
CMD ["run", "quickstart"]
