"""From the loop IR and the steps of a program to LLVM IR, and from there to objects.

It translates, and decides nothing that schedules have decided.
"""
