"""The web sides of the agent and of the controller."""
