"""What to show a learner next: sources propose items, a learned ranker orders them, rules mix the page."""
