"""What every store of the analytics service must do.

A subclass gives the fixtures `store`, an empty one, and `other`, the store of another
replica where the database can be shared, else the same.
"""

from __future__ import annotations

from tests.contract.analytics_store_budgets import BudgetsContract
from tests.contract.analytics_store_recovery import RecoveryContract
from tests.contract.analytics_store_sessions import SessionsContract
from tests.contract.analytics_store_turns import TurnsContract
from tests.contract.analytics_store_usage import UsageContract


class AnalyticsStoreContract(
    SessionsContract, TurnsContract, UsageContract, BudgetsContract, RecoveryContract
):
    """The contract of `analytics_service.ports.Store`."""
