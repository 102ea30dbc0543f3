"""`lockd keep`: a small parent that keeps what a daemon needs to survive a crash."""
