"""Joins operators, search space and latency: data, search, retraining, evaluation, records, and the command line."""
