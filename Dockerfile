# Two images from one file: `api` (also migrations, sweeper and Flower; holds no torch) and `worker`.
# Not built yet: no docker engine was at hand when this was written.
#   docker build --target api -t calotype-api .
#   docker build --target worker -t calotype-worker .

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/app HOME=/tmp
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin calotype
WORKDIR /app
COPY requirements.lock pyproject.toml ./

FROM base AS api
# The lock is complete but for what torch brings, so nothing is resolved here.
RUN grep -vE '^(torch|diffusers|transformers|accelerate|tokenizers|safetensors|scipy)==' requirements.lock \
      > /tmp/api.lock \
    && pip install --no-cache-dir --no-deps -r /tmp/api.lock
COPY settings.py logs.py terminal.py cli.py cli_keys.py calotype.toml ./
COPY client client
COPY web web
COPY tasks tasks
COPY storage storage
COPY local local
COPY migrations migrations
RUN chmod -R a+rX /app
USER calotype
EXPOSE 8000
CMD ["python", "-m", "gunicorn", "web.app:create_app()", "--worker-class", "gthread", "--workers", "1", \
     "--threads", "32", "--graceful-timeout", "10", "--no-control-socket", "--bind", "0.0.0.0:8000"]

FROM base AS worker
# torch's wheel carries the CUDA libraries; the host brings the driver alone.
RUN pip install --no-cache-dir -r requirements.lock
COPY settings.py logs.py terminal.py cli.py cli_keys.py calotype.toml ./
COPY client client
COPY tasks tasks
COPY engine engine
COPY storage storage
COPY local local
COPY models/tiny models/tiny
RUN chmod -R a+rX /app
USER calotype
CMD ["python", "-m", "cli", "worker", "--device", "cpu:0"]
