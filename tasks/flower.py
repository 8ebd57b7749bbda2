"""Flower's Celery application, with Flower's metrics behind its password like everything else that it shows.

Owns that one change. Flower serves `/metrics` to anybody, with the names of tasks, hosts and queues.
"""

from flower.views.monitor import Metrics
from tornado.web import authenticated

from tasks.app import celery

__all__ = ["celery"]

Metrics.get = authenticated(Metrics.get)
