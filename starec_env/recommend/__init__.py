"""The other half of a simulator: a recommender acts, and simulated users answer."""
