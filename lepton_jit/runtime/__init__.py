"""Object code and a manifest -> a program that runs. Knows no graph, no pass and no layer."""
