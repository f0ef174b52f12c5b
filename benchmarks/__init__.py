"""Measures speed and memory, and compares with other packages."""
