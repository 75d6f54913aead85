"""Who may see what: the callers of the web server, reviewed by Kubernetes."""
