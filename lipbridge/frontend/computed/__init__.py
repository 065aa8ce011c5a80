"""Constants that a program computes, each with a bound of its rounding error."""
