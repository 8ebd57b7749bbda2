"""Step batches: requests in, images out, no Celery, Flask, SQL, S3 or environment. Exports nothing."""
