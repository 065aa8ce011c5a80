"""Attacks on proved bounds: families of networks and kernels, and judges that compare exactly, at tolerance zero."""
