# Two images from one file: `api` (also migrations, sweeper, webhooks and Flower; without torch) and `worker`.
# It is linted, and tests run the files and packages of each image; no image has been built yet.
#   docker build --target api --tag calotype-api:local .
#   docker build --target worker --tag calotype-worker:local .
# With --build-arg TRACES=yes both can send traces, for which CALOTYPE_TRACES_ENDPOINT is set.
# No HEALTHCHECK here: one image runs several kinds of processes; docker-compose.yml has a check for each.

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app HOME=/tmp
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin calotype
WORKDIR /app

# The packages that each image needs. Only the lists are copied, not pyproject.toml, so that a changed lint rule
# does not reinstall everything.
FROM base AS dependencies
COPY pyproject.toml ./
COPY deploy/dependencies.py deploy/
RUN python deploy/dependencies.py api > api.txt && python deploy/dependencies.py worker > worker.txt

FROM base AS api
COPY requirements.lock requirements-traces.lock ./
COPY --from=dependencies /app/api.txt ./
RUN pip install --no-cache-dir --constraint requirements.lock --requirement api.txt
ARG TRACES=""
RUN if [ -n "$TRACES" ]; then pip install --no-cache-dir --no-deps --requirement requirements-traces.lock; fi
COPY *.py calotype.toml pyproject.toml ./
COPY catalogue catalogue
COPY client client
COPY engine/__init__.py engine/
COPY engine/policy engine/policy
COPY web web
COPY tasks tasks
COPY storage storage
COPY cli cli
COPY bench/__init__.py bench/figures.py bench/
COPY bench/plan bench/plan
COPY local local
COPY migrations migrations
RUN chmod -R a+rX /app
USER 10001
EXPOSE 8000
CMD ["python", "-m", "cli", "api", "--host=0.0.0.0", "--port=8000"]

FROM base AS worker
COPY requirements.lock requirements-traces.lock ./
COPY --from=dependencies /app/worker.txt ./
# torch's wheel contains the CUDA libraries; the host only needs the driver.
RUN pip install --no-cache-dir --constraint requirements.lock --requirement worker.txt
ARG TRACES=""
RUN if [ -n "$TRACES" ]; then pip install --no-cache-dir --no-deps --requirement requirements-traces.lock; fi
COPY *.py calotype.toml pyproject.toml ./
COPY catalogue catalogue
COPY client client
COPY tasks tasks
COPY engine engine
COPY storage storage
COPY cli cli
COPY local local
COPY models/tiny models/tiny
COPY models/tiny-loras models/tiny-loras
# A named volume gets the owner of the folder where it is mounted.
RUN chmod -R a+rX /app && install -d -o 10001 profiles run
ENV CALOTYPE_RUN_DIR=/app/run CALOTYPE_PROFILES_DIR=/app/profiles
USER 10001
CMD ["python", "-m", "cli", "worker", "--device", "cpu:0"]
