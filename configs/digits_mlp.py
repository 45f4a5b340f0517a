"""A UNF on top of Muon's step, for an MLP on the digits of scikit-learn: learns in minutes, the demo.

Command:  python scripts/meta_train.py --config configs/digits_mlp.py --run-dir runs/digits_mlp
Cost:     2 to 6 minutes on 2 cores (300 outer steps, 480,000 inner steps), and one or two more for scripts/evaluate.py
Expect:   tuned and scheduled Adam's final training loss in about 120 steps, where Adam takes 262; a final loss of .00006, where Adam ends
          at .00095 and tuned Muon at .00010; a test accuracy of .970, Adam's is .966
"""

import lopt
from tasks.mlp import MLPConfig

config = lopt.MetaTrainConfig(
    task=MLPConfig(dataset="digits", hidden=(32,), batch_size=128),
    optimizer=lopt.LearnedOptimizerConfig(
        rule=lopt.GatedRule(nominal=lopt.MuonNominal(), alpha=0.04, schedule=lopt.ScheduleConfig(base="cosine", fraction=True)),
        features=lopt.AdafactorFeatures(bias_correction=True),
        network=lopt.UNFConfig((16, 16)),
    ),
    estimator=lopt.NRESConfig(particles=16),
    unroll=lopt.UnrollConfig(horizon=300, meta_loss="mean"),
    outer=lopt.OuterConfig(learning_rate=3e-3, warmup_steps=10, decay_steps=300),
    evaluation=lopt.EvaluationConfig(
        steps=300,
        seeds=10,
        tuning_seeds=10,
        baselines=("adam", "nadamw", "muon", "sgdm"),
        schedules=("constant", "cosine", "warmup_cosine"),
    ),
    outer_steps=300,
)
