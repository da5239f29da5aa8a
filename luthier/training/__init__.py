"""The engine: the loop, the optimizer and its rate, checkpoints."""
