"""The agent's web side."""
