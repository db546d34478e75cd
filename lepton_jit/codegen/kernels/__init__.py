"""Schedules of everything but contractions: elementwise maps, reductions, movements, windows, scatters.

A cluster of graph nodes that fusion put together comes in, one kernel of the loop IR goes out.
"""
