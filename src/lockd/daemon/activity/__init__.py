"""What happened: hears every effect."""
