"""The PRM inside other libraries. Each module needs its library, this package does not."""
