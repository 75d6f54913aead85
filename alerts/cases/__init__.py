"""When does each alert fire, and when not? Series in, alerts out, for promtool."""
