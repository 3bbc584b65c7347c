"""What serves a language model, policy or PRM: engines, caches, hot swaps, SGLang."""
