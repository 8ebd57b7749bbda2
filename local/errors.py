"""The errors of `local`. Each message says what to do."""


class LocalError(Exception):
    """Something on this machine keeps calotype from running; the message names it."""


class NothingThere(LocalError):
    """No `calotype up` has ever run on this data folder."""


class WrongUsage(LocalError):
    """An option on the command line has a value that cannot be used; the message names the option."""


class FolderInUse(LocalError):
    """Another `calotype up` runs on this data folder."""


class PortTaken(LocalError):
    """Another process uses a port that was requested by number."""


class StartFailed(LocalError):
    """A service ended, or did not answer in time; the message names its log and shows its end."""
