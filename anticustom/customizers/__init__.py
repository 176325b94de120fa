"""Customizers: the adversary's ways to teach a model a person from four photos. One file per
way.
"""
