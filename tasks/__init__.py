"""Celery tasks and the processes that run them. The only package where engine and storage meet."""
