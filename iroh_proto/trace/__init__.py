"""Writes down what machines do, as JSON lines from which it can be drawn and repeated.

What a machine does follows from its inputs and its source of chance. Whoever has both written
down can make another machine do the same, and see where it decides otherwise.
"""
