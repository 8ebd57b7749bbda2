# Two images from one file: `api` (also migrations, sweeper, webhooks and Flower; holds no torch) and `worker`.
# It is linted, and what it copies and installs is run by tests; no image was built where it was written.
#   docker build --target api --tag calotype-api:local .
#   docker build --target worker --tag calotype-worker:local .
# No HEALTHCHECK here: one image serves several processes; docker-compose.yml knows how to ask each.

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app HOME=/tmp
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin calotype
WORKDIR /app

# Which packages each image needs. Copying the lists, not pyproject.toml, keeps a changed lint rule from
# installing everything again.
FROM base AS dependencies
COPY pyproject.toml ./
COPY deploy/dependencies.py deploy/
RUN python deploy/dependencies.py api > api.txt && python deploy/dependencies.py worker > worker.txt

FROM base AS api
COPY requirements.lock ./
COPY --from=dependencies /app/api.txt ./
RUN pip install --no-cache-dir --constraint requirements.lock --requirement api.txt
COPY *.py calotype.toml pyproject.toml ./
COPY catalogue catalogue
COPY client client
COPY web web
COPY tasks tasks
COPY storage storage
COPY cli cli
COPY local local
COPY migrations migrations
RUN chmod -R a+rX /app
USER 10001
EXPOSE 8000
CMD ["python", "-m", "cli", "api", "--host=0.0.0.0", "--port=8000"]

FROM base AS worker
COPY requirements.lock ./
COPY --from=dependencies /app/worker.txt ./
# torch's wheel carries the CUDA libraries; the host brings the driver alone.
RUN pip install --no-cache-dir --constraint requirements.lock --requirement worker.txt
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
# A named volume takes its owner from the folder that it is mounted on.
RUN chmod -R a+rX /app && install -d -o 10001 profiles run
ENV CALOTYPE_RUN_DIR=/app/run CALOTYPE_PROFILES_DIR=/app/profiles
USER 10001
CMD ["python", "-m", "cli", "worker", "--device", "cpu:0"]
