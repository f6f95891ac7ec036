"""Numerical operations, each in a plain and a fast form behind one signature and one switch."""
