"""Which model is likely good enough for a question about training runs, and cheapest: advice."""
