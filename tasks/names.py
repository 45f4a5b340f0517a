"""Names by which files know the configs of tasks: name -> `module:Class`. A name is for ever; where it leads may change."""

NAMES = {
    "addition": "tasks.addition:AdditionConfig",
    "autoencoder": "tasks.autoencoder:AutoencoderConfig",
    "cnn": "tasks.cnn:CNNConfig",
    "gru": "tasks.gru:GRUConfig",
    "mlp": "tasks.mlp:MLPConfig",
    "resnet": "tasks.resnet:ResNetConfig",
    "rnn": "tasks.rnn:RNNConfig",
    "transformer": "tasks.transformer:TransformerConfig",
    "vit": "tasks.vit:ViTConfig",
}
