"""Made-up data for looking at the dashboard, and for its tests: `titer db seed`.

Nothing here trains, measures or serves: rows are written as the service would have left them.
"""
