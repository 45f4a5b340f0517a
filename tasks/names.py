"""Names by which files know the configs of tasks: name -> `module:Class`. A name is for ever; where it leads may change."""

NAMES = {
    "addition": "tasks.addition:AdditionConfig",
    "cnn": "tasks.cnn:CNNConfig",
    "mlp": "tasks.mlp:MLPConfig",
    "rnn": "tasks.rnn:RNNConfig",
    "transformer": "tasks.transformer:TransformerConfig",
}
