"""How a method's stages are run: epochs over records, rounds of sampling, steps in an
environment.
"""
