"""Zoos: many trained models with what is known of each, and predictors that read the one off the weights of the other."""
