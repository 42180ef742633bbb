"""What a training step costs, counted from its traced program: nothing is run."""
