"""The answers: from the state and the effects of the engine to maps and sentences."""
