"""What Kubernetes says about this node: pod-resources, ResourceSlices, claims, cgroups."""
