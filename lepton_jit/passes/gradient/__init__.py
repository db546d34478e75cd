"""Reverse-mode differentiation: gradient nodes become the operations that compute them."""
