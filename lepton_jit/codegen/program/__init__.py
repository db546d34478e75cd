"""From an optimized graph to the steps of a program: kernels, the buffers between them, and what runs slice by slice.

Fused nodes come in, a `Lowered` program goes out, from which emission and the manifest are made.
"""
