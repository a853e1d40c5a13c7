# The worker and the server in a container, for an NVIDIA GPU: docker build --tag vec-pipeline .
# Without one: docker build --build-arg VARIANT=cpu --tag vec-pipeline:cpu .
ARG VARIANT=cuda

FROM ubuntu:24.04 AS cpu
ENV TORCH_INDEX=https://download.pytorch.org/whl/cpu \
    LLAMA_INDEX=https://abetlen.github.io/llama-cpp-python/whl/cpu

# CUDA 13.0, as in the torch of PyPI, needs a driver from 580 on.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04 AS cuda
ENV TORCH_INDEX=https://download.pytorch.org/whl/cu130 \
    LLAMA_INDEX=https://abetlen.github.io/llama-cpp-python/whl/cu130

FROM ${VARIANT} AS worker
# The versions are those of Ubuntu 24.04 on the day of the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libcairo2 libgomp1 python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /build
# Dependencies first: a layer that changes only with them.
COPY constraints.txt .
RUN pip install --no-cache-dir --constraint constraints.txt --index-url "$TORCH_INDEX" torch torchvision \
    && pip install --no-cache-dir --constraint constraints.txt --extra-index-url "$LLAMA_INDEX" \
    --only-binary llama-cpp-python llama-cpp-python
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt '.[all]'

# Models are downloaded to /cache, rows are written to /data/output. Both are open to the user that compose.yaml names.
RUN mkdir -p /cache /data/output && chmod 777 /cache /data /data/output
ENV HF_HOME=/cache HOME=/cache
WORKDIR /data
USER 1000:1000
ENTRYPOINT ["vec-pipeline"]
CMD ["--help"]
