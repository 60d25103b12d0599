"""How fast fewbit is on this machine, against other packages and against the machine's own limits."""
