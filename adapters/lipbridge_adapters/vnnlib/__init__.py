"""VNN-LIB: properties of networks as the verifiers of VNN-COMP read them."""
