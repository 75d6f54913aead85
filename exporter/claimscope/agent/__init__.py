"""One node's agent: sampler and kubelet in, accounts in the middle, Snapshots out."""
