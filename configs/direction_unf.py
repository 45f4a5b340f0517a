"""The learned direction of direction.py with a UNF: every weight also sees averages over the weights around it, in any network.

Command:  python scripts/meta_train.py --config configs/direction_unf.py --run-dir runs/direction_unf
Cost:     1.9 million inner steps: 12 minutes on 2 older cores with other work
Expect:   docs/research/direction.md has what came of it; it is shipped as lopt-direction-unf
"""

import dataclasses

from configs.direction import config as pointwise
from lopt.networks.update import UNFConfig

config = dataclasses.replace(
    pointwise, optimizer=dataclasses.replace(pointwise.optimizer, network=UNFConfig((8, 8), share="role"))
)
