"""Passes on loops (`scan`): work moves out of their regions, to before or behind the loop.

Graphs with loops come in; loops that carry, stack and compute less go out.
"""
