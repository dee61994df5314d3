"""Benchmarks that run next to named baselines in the same run, and report ratios."""
