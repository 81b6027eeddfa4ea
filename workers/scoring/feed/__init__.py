"""What to show a learner next: sources propose items, a learned ranker orders them, rules mix the page."""

import torch  # noqa: F401  # before lightgbm and implicit: brings the OpenMP runtime they want, where the system has none
