"""Postgres rows and S3 blobs: the source of truth for jobs. It knows nothing of Flask, Celery or torch."""
