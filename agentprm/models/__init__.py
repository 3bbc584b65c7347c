"""What serving and fitting models share: devices, tokens, caches; and hot swaps and SGLang."""
