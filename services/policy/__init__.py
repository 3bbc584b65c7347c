"""The policy service: samples REASON and ACTION for the states it is sent."""
