"""A simulated API server: real HTTP, resourceVersions, watches, writes, refusals."""
