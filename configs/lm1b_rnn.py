"""The paper's RNN recipe: a UNF optimizer for a character RNN on LM1B, 16 characters at a time, horizon 2,000.

Command:  python scripts/meta_train.py --config configs/lm1b_rnn.py --run-dir runs/lm1b_rnn
Cost:     80 million inner steps: 20 hours on a TPU v3-8 in the paper; for an accelerator, days on 2 cores
Expect:   not run here yet. An independent re-run of the paper reports 1.48 +- .16 times fewer steps than tuned Adam (DeepSets
          0.88 +- .14; arXiv 2507.01649, table 6, on LM1B)

All values are the paper's but the outer learning rate, which it does not state; a character is a byte of UTF-8, 256 in all. LM1B must
be at hand: the error that says so lists the ways to get it. f has 8,043 meta-parameters, as printed. To swap f: DeepSetsConfig()
(2,788), LearnedSGDMConfig() (2); there is no NFN for recurrent weights.
"""

import lopt
from tasks.rnn import RNNConfig

config = lopt.MetaTrainConfig(
    task=RNNConfig(dataset="lm1b", tokenizer="bytes", length=16, embedding=32, hidden=(64,), batch_size=64),
    optimizer=lopt.LearnedMomentumConfig(alpha=0.1, g0=0.9, beta=0.001, network=lopt.UNFConfig((32, 32, 32), terms=None)),
    estimator=lopt.PESConfig(particles=16, sigma=0.01),
    unroll=lopt.UnrollConfig(horizon=2000, truncation=50, meta_loss="final"),
    outer=lopt.OuterConfig(learning_rate=1e-4, clip_norm=1.0),
    evaluation=lopt.EvaluationConfig(steps=2000, seeds=5),
    outer_steps=50_000,
    save_every=100,
)
