"""lopt: the framework in which learned optimizers are meta-trained."""
