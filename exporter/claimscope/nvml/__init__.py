"""Everything that speaks NVML: the only importer of pynvml, the sampler process and its supervisor."""
