"""Small changes of the code that make a bound wrong, or could, and the tests that must notice each of them.

``python -m tests.mutants`` (or ``make mutants``) applies every change of ``changes/*.toml`` in a copy of the tree, runs
the tests that are named for it, and says which changes no test noticed. A list is of one file of the code::

    file = "lipbridge/rigor/matrix.py"
    tests = ["tests/rigor/test_matrix.py"]      # run in this order until one fails: files or node ids

    [[change]]
    name = "gram-error-dropped"          # unique in the file
    kind = "rounding"                    # or "logic": it changes more than rounding
    before = "..."                       # occurs exactly once in the file
    after = "..."
    tests = ["..."]                      # optional: instead of the list's
    equivalent = "..."                   # optional: why no input can show it; it is not run, and not counted
"""
