"""Fixtures of this layer."""

from tests.support.ground import grounds
from tests.support.rights import under_its_rights

__all__ = ["grounds", "under_its_rights"]
