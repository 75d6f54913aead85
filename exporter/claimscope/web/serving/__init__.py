"""How the web servers are guarded: TLS, passwords and limits, as exporter-toolkit's web configuration file says."""
