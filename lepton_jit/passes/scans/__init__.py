"""What moves into loops, out of them and behind them."""
