"""The passes of the graph IR: each takes a graph and returns one that computes the same, or the same graph.

Traced graphs come in, optimized ones go out. `compiler/pipeline.py` has their order.
"""
