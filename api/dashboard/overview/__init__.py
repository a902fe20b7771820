"""The first page of a day: what needs a person, then how everything is.

It asks for a bounded number of rows whatever the tables hold: counts stop at a limit, windows are cut, and use
is counted beforehand (`api.organization.use`). Where that makes a number a lower bound, the page says so.
"""
