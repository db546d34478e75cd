"""The loop IR: its data, text, verifier and interpreter, and the builder that schedules write it with.

Nothing here knows a tensor operation; kernels come in as text or from schedules, and go out to emission.
"""
