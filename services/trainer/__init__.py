"""The trainer: demonstrations, targets, the fits of PRM and policy, and the loop over them."""
