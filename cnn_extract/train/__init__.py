"""Train CNNs by recipe: what the published systems did, each practice turned on by name."""
