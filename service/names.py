"""What the keys of campaigns, arms and segments look like."""

KEY_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
