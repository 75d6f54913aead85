"""GPU telemetry and accounting by Kubernetes ResourceClaim."""
