"""Analyst reports: what a campaign did, what it is worth, what learning cost, what may be said.

`campaign_report` reads the log once (`service.reports.log`), hands the columns to the estimators
of `bandits.evaluation`, and fills in the parts of `service.reports.fields`.
"""

from service.reports.build import campaign_report
from service.reports.fields import CSV_COLUMNS, Report, help_texts

__all__ = ["CSV_COLUMNS", "Report", "campaign_report", "help_texts"]
