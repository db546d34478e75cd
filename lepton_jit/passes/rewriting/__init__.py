"""Rewrite rules on a graph, what they match and the facts that they rest on."""
