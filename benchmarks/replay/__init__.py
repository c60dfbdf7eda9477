"""What `benchmarks/tabular.py` is made of; it says how to run it."""
