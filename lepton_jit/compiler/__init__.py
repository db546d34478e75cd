"""From a traced graph to a program that runs: passes, the cache of objects, and what a user reads of it.

A graph and the arrays of its parameters come in, an `Executable` or a `CompiledModel` goes out. The package knows all
lower ones, and no layer.
"""
