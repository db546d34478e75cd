"""`compile`, `fit`, `evaluate` and `predict`: from a model and a user's arrays to native steps.

A model, an optimizer and an objective become graphs of whole steps; batches are fed to their programs by address. What
goes out are updated weights, and numbers for callbacks.
"""
