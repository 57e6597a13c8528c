"""Fixtures of this layer."""

from tests.support.rights import under_its_rights

__all__ = ["under_its_rights"]
