"""The exact l_1 and l_inf constants of small piecewise linear networks as mixed-integer programs, with HiGHS."""
