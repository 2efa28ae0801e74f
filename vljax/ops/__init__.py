"""Numerics without parameters: attention, convolution, assignment, transport, permanents."""
