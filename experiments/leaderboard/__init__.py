"""Who wins: records as tables, tests, figures and a page."""
