"""The roles of the processes that connect to the data services, and which of them the object store knows.

Knows no service: what a role may do stands in `deploy/valkey.acl` and `deploy/seaweedfs_identity.json`.
"""

from typing import Literal, get_args

Role = Literal["api", "worker", "sender", "sweeper", "flower"]
"""Who connects to the data services: each role has credentials of its own."""
ROLES: tuple[Role, ...] = get_args(Role)
S3_ROLES: tuple[Role, ...] = ("api", "worker", "sweeper")
"""Who reads, writes or deletes images."""
