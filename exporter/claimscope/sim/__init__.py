"""The one simulator: GPUs, a kubelet and a cluster that do not exist, driven by one pure function of time."""
