"""What a context and an arm are worth: the regressors that contextual policies explore with."""
