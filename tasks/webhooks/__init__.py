"""Webhooks: payload, addresses, connection, delivery, and the worker that sends them."""
