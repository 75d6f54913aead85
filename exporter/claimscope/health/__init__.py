"""From readings and events to findings: which devices are degraded, on what evidence, what would clear it. No I/O."""
