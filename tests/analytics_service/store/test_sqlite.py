"""The store in an SQLite file: the contract."""

from __future__ import annotations

from tests.contract.analytics_store_contract import AnalyticsStoreContract


class TestSqliteStore(AnalyticsStoreContract):
    """The contract that every store keeps."""
