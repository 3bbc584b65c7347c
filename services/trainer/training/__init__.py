"""What fits are made of: rows, batches, losses, optimizers, trainers, checkpoints."""
