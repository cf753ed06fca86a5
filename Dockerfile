# Every target installs in one way: `.ci/install`, the same as `make`, as a user without rights.
#
#   docker build --target cuda -t fairway:cuda .     docker run --rm --gpus all ... fairway:cuda run baseline --scale one-gpu
#   docker build --target cpu -t fairway:cpu --build-arg TORCH_INDEX=... .
#                                                    docker run --rm -v fairway-store:/store fairway:cpu run quickstart
#
# TORCH_INDEX is the address of an index of torch builds, such as PyTorch's own of CPU builds; it stays readable in the
# image's history. Without it torch comes from plain PyPI, which has the CUDA build: the cpu image then works too, and is
# as large as the other. EXTRAS names drivers: s3 gcs azure hf.
FROM python:3.11-slim-bookworm AS packages
# git: the commit goes into every record. Compilers: torch.compile asks for one of C and one of C++. The folders are there
# for volumes, which belong to whom an image's folder belongs: the store, its cache, and claims on GPUs.
RUN apt-get update && apt-get install -y --no-install-recommends git gcc g++ libc6-dev && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 fairway \
 && install --directory --owner fairway --group fairway /store /app /home/fairway/.cache /tmp/fairway-gpus-1000
# By number, by which Kubernetes can tell that it is not root.
USER 1000
WORKDIR /app
ARG TORCH_INDEX=""
ARG EXTRAS="s3"
ENV EXTRAS=$EXTRAS PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 PATH=/app/.venv/bin:$PATH
COPY --chown=1000:1000 requirements.lock pyproject.toml ./
COPY --chown=1000:1000 .ci/install .ci/install
RUN .ci/install .venv

FROM packages AS app
COPY --chown=1000:1000 . .
RUN .ci/install .venv
# The store is `.fairway` in the folder that a command starts in.
VOLUME /store
WORKDIR /store
ENTRYPOINT ["fairway"]
CMD ["run", "quickstart"]

FROM app AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# What a Docker or Kubernetes pool starts for each stage: the command comes from the deployment.
FROM cuda AS job
ENTRYPOINT []
CMD []

# The last target is what `docker build .` makes.
FROM app AS cpu
