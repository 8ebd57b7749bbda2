"""The JSON API: routes, schemas, resources."""
