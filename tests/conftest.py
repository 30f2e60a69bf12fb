"""For every test: one thread (tiny models run faster on one, and sums do not depend on the machine)."""

import torch

torch.set_num_threads(1)
