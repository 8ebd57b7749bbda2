"""Flower's Celery application, with Flower's `/metrics` behind its password like its other pages.

By default Flower serves `/metrics` without one, with the names of tasks, hosts and queues.
"""

from flower.views.monitor import Metrics
from tornado.web import authenticated

from tasks.app import celery

__all__ = ["celery"]

Metrics.get = authenticated(Metrics.get)
