"""How far an input may move before its class can change, proved."""
