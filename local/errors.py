"""What can go wrong on one machine, in words that say what to do; owns no behaviour."""


class LocalError(Exception):
    """Something on this machine stops calotype; the message says what, and where to look."""


class NothingThere(LocalError):
    """No `calotype up` has ever run on this data folder."""


class WrongUsage(LocalError):
    """What was given on the command line cannot be meant; the message names the option."""


class FolderInUse(LocalError):
    """Another `calotype up` runs on this data folder."""


class PortTaken(LocalError):
    """A port that was asked for by number belongs to another process."""


class StartFailed(LocalError):
    """A service ended, or did not answer in time; the message names its log and shows its end."""
