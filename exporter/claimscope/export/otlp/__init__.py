"""Push to an OpenTelemetry Collector: how samples become OTLP, and how that gets there."""
