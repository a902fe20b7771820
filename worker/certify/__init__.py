"""Certification: simulated customers attack one aligned model, and a report says what became of it.

Begin at `job.py`; `models.certification` has the plans, `models.certificate` the report.
"""
