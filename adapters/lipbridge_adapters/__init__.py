"""The tools of others, a folder each; the core never names one."""
