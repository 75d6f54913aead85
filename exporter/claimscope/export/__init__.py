"""From one Snapshot to what readers understand: samples, text, documentation."""
