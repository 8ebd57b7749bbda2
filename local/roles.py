"""The roles with which processes connect to the data services, and the subset that the object store knows.

`deploy/valkey.acl` and `deploy/seaweedfs_identity.json` say what a role may do.
"""

from typing import Literal, get_args

Role = Literal["api", "worker", "sender", "sweeper", "flower"]
"""The roles; each has its own credentials."""
ROLES: tuple[Role, ...] = get_args(Role)
S3_ROLES: tuple[Role, ...] = ("api", "worker", "sweeper")
"""The roles that read, write or delete images."""
