"""Schedules of matrix products and convolutions, and of the packs that they read.

A contraction with its epilogue comes in; register tiles, panels and prefetches are chosen here; kernels of the loop IR
go out.
"""
