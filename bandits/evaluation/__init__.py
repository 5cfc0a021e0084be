"""What analysts read: regret, arm means that hold under adaptive data, and sample ratio tests."""
