"""Postgres rows and S3 blobs: the job's truth. Knows nothing of Flask, Celery or torch."""
