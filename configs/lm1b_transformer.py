"""The paper's Transformer recipe: a UNF optimizer for two blocks of width 32 on LM1B, 8 tokens at a time, horizon 5,000.

Command:  python scripts/meta_train.py --config configs/lm1b_transformer.py --run-dir runs/lm1b_transformer
Cost:     80 million inner steps, each with f over 2.1 million weights; the paper states no time. For an accelerator
Expect:   not run here yet, and no independent re-run of this task is published

All values are the paper's but two that it does not state: the outer learning rate, and the vocabulary, here the 32,000 pieces of the
Transformers in `learned_optimization`, on which its code builds; `--task.tokenizer bytes` has 256. LM1B must be at hand: the error
that says so lists the ways to get it. f has 79,208 meta-parameters, as our spec tells heads apart, where the paper prints 64,168 by a
spec that is not true of the network, see tasks/paper_specs.py. To swap f: UNFConfig(share="role"), whose size is the same for any
number of blocks, DeepSetsConfig() (2,788), LearnedSGDMConfig() (2).
"""

import lopt
from tasks.transformer import TransformerConfig

config = lopt.MetaTrainConfig(
    task=TransformerConfig(
        dataset="lm1b", tokenizer="bpe:32000", length=8, blocks=2, width=32, heads=4, head_width=32, mlp=128, batch_size=8
    ),
    optimizer=lopt.LearnedMomentumConfig(alpha=0.1, g0=0.9, beta=0.001, network=lopt.UNFConfig((32, 32, 32), terms=None)),
    estimator=lopt.PESConfig(particles=16, sigma=0.01),
    unroll=lopt.UnrollConfig(horizon=5000, truncation=50, meta_loss="final"),
    outer=lopt.OuterConfig(learning_rate=1e-4, clip_norm=1.0),
    evaluation=lopt.EvaluationConfig(steps=5000, seeds=3),
    outer_steps=50_000,
    save_every=100,
)
