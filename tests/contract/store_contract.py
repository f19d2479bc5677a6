"""What every store must do. A subclass gives the fixture `store`, an empty one."""

from __future__ import annotations

from tests.contract.store_audit import AuditContract
from tests.contract.store_fleet import FleetContract
from tests.contract.store_records import RecordsContract
from tests.contract.store_series import SeriesContract
from tests.contract.store_tokens import TokensContract
from tests.contract.store_units import UnitsContract


class StoreContract(
    UnitsContract, TokensContract, AuditContract, RecordsContract, FleetContract, SeriesContract
):
    """The contract of `control_plane.services.ports.Store`."""
