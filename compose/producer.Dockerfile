# Small images without torch. The last stage is the base for a backend service: the client and the command line.
#   docker build -f compose/producer.Dockerfile -t batchmill-producer .
#   docker build -f compose/producer.Dockerfile --target deliverer -t batchmill-deliverer .
#   docker build -f compose/producer.Dockerfile --target gateway -t batchmill-gateway .
#   docker build -f compose/producer.Dockerfile --target flower -t batchmill-flower .
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/batchmill
WORKDIR /source
COPY constraints.txt pyproject.toml setup.py README.md LICENSE ./
COPY package ./package
COPY producer ./producer
COPY worker ./worker
COPY engine ./engine
COPY kernels ./kernels
RUN /opt/batchmill/bin/pip install -c constraints.txt "/source[encryption,traces]"

FROM build AS build-deliverer
RUN /opt/batchmill/bin/pip install -c constraints.txt "/source[deliverer,encryption,traces]"

FROM build AS build-gateway
RUN /opt/batchmill/bin/pip install -c constraints.txt "/source[encryption,gateway,traces]"

FROM build AS build-metrics
RUN /opt/batchmill/bin/pip install -c constraints.txt "/source[metrics]"

FROM build AS build-flower
RUN /opt/batchmill/bin/pip install -c constraints.txt "/source[monitor]"

FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /app batchmill \
 && install --directory --owner 10001 --group 10001 /app /files
# PYTHONSAFEPATH keeps the working directory off the import path.
ENV PATH=/opt/batchmill/bin:$PATH PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /app

FROM runtime AS deliverer
COPY --from=build-deliverer /opt/batchmill /opt/batchmill
ENTRYPOINT ["batchmill"]
CMD ["deliver"]

FROM runtime AS gateway
COPY --from=build-gateway /opt/batchmill /opt/batchmill
ENTRYPOINT ["batchmill"]
CMD ["gateway"]

FROM runtime AS metrics
COPY --from=build-metrics /opt/batchmill /opt/batchmill
ENTRYPOINT ["batchmill"]
CMD ["metrics"]

FROM runtime AS flower
COPY --from=build-flower /opt/batchmill /opt/batchmill
ENTRYPOINT ["batchmill"]
CMD ["flower"]

FROM runtime AS producer
COPY --from=build /opt/batchmill /opt/batchmill
ENTRYPOINT ["batchmill"]
CMD ["--help"]
