"""What is counted of the answers that routes give, by the adapter's digest.

There are no more labels than adapters that were ever on a route.
"""

from prometheus_client import Counter

BASE = "base"
ANSWERS = Counter("lyo_route_answers", "Ended answers.", ["task", "adapter", "state"])
THUMBS = Counter("lyo_route_thumbs", "Ratings of answers.", ["task", "adapter", "rating"])
