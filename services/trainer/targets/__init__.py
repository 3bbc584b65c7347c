"""What a PRM is fitted to: Monte Carlo targets, shaped ones, and pairs of a relative PRM."""
