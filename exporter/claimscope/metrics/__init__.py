"""Which quantities exist, how are they read, and under which names do they appear? Pure data."""
