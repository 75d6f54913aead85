"""Which needs of the agent on this node, or of the controller, are met?"""
