"""Other people's packages, one a module: their tasks for our optimizers, our optimizers for their trainers."""
