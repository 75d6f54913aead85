"""The figures once more, under the names and labels of dcgm-exporter."""
