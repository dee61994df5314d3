"""Measurements against named baselines, side by side in one run; their results are ratios."""
