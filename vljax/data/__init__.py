"""Sources of examples: random-access sequences of dicts of numpy arrays, and what judges them."""
