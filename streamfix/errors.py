"""The errors of streamfix. Each message is one sentence that says what is wrong and what to do next."""


class StreamfixError(Exception):
    """Base of every error a user can mend; the command line prints it as one sentence and exits with 1."""


class InputError(StreamfixError):
    """The input cannot be read: missing, empty, not media, without a picture."""


class OutputError(StreamfixError):
    """The output cannot be written: no space, no permission, or a container that cannot hold a stream."""


class ModelError(StreamfixError):
    """A model is unknown, missing, corrupted, or failed while it ran."""


class DependencyError(StreamfixError):
    """An installed package cannot be loaded; the message names the package and the remedy."""


class UsageError(StreamfixError):
    """Options that contradict each other or lie outside their range; the command line exits with 2."""
