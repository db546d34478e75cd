"""Provide what every layer is made of: weights under their paths, symbolic calls, masks, the way into a trace.

A layer's calls on symbolic tensors come in; traces of them go out, for a model to put together.
"""
