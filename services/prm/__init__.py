"""The PRM service: Q(s, a) for the state-action pairs it is sent."""
