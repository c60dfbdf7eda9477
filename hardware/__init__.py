"""Devices, one YAML file for each family; `nas.latency.hardware` documents their format."""
