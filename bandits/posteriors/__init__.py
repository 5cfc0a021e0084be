"""Posteriors of an arm's mean reward, and the probability that an arm is best."""
