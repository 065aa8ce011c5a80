"""Constants that a program computes, each with a bound of its rounding error."""

from lipbridge.frontend.computed import program as program  # it says what operations on computed numbers give
