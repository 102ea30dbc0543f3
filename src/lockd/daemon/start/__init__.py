"""How a service begins: empty, after an upgrade, after a crash."""
