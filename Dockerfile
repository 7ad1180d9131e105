# starec with a server for CPUs: docker build -t starec . && docker run --rm -v runs:/runs starec demo
FROM python:3.12-slim

ARG EXTRAS=serve,report
WORKDIR /src
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE ./
COPY starec starec
COPY starec_env starec_env
COPY agents agents
COPY training training
COPY eval eval
RUN pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]" \
    && useradd --create-home --uid 1000 starec \
    && mkdir /runs \
    && chown starec:starec /runs

USER 1000
WORKDIR /runs
VOLUME /runs
ENTRYPOINT ["starec"]
CMD ["--help"]
