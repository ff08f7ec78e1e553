"""Arithmetic about models before and while they run: parameters, FLOPs, the device's peak."""
