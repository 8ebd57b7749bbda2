"""The inference engine: continuous batching of diffusers pipelines, without Celery, Flask, SQL or S3."""
