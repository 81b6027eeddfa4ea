"""What models find in content: how much it teaches, how well it is made, for whom, and about what."""
