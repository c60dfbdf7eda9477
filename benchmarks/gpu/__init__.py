"""What `benchmarks/gpu_check.py` is made of; it says how to run it."""
