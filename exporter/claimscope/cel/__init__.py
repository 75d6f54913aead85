"""CEL as Kubernetes evaluates it on devices: Google's engine, Kubernetes' functions, and a process for both."""
