"""Rollout workers: take a job from Redis, play it with env and policy, push what happened."""
