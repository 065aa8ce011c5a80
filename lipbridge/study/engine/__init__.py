"""Where cells run: in processes of this machine with limits, or on a cluster."""
