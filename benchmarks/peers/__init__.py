"""A peer a file: its layers (`benchmarks.network.Layers`), and `build(problem, variant, threads) -> Contender`."""
