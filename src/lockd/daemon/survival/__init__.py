"""What of this daemon outlives it, and how a successor goes on."""
