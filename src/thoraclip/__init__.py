"""ThoraCLIP."""
