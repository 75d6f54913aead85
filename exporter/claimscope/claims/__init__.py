"""From the objects of a cluster to claims: lifecycle, causes of waiting, capacity, taints. No I/O."""
