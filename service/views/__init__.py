"""The HTTP face: thin views that authenticate, parse, make one call and shape the reply."""
