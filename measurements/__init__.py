"""Latencies that others measured, and the estimator that is fitted to them (ATTRIBUTION.md)."""
