"""From optimized graphs to object code: loops, the steps of a program, LLVM IR.

A graph and a target come in; a lowered program and its objects go out. It knows families of operations, no layer.
"""
