"""Celery: who runs what, where and how often. The only place where engine and storage meet."""
