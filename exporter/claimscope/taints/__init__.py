"""From findings to fences: which devices are tainted, within which budgets, and when a taint is lifted."""
