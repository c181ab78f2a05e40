"""Augmentation, optimizer, callbacks, and the calibration that ends a training."""
