"""What serves a language model, policy or PRM: devices, caches, hot swaps, SGLang."""
