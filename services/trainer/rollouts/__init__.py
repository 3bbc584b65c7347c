"""What the trainer has played: jobs out to the rollout workers, results in."""
