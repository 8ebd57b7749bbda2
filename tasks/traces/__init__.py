"""Spans of what processes do, for a collector that understands OpenTelemetry's protocol (OTLP)."""
