"""The package's own error: what the user can mend, said in one sentence."""


class InputError(ValueError):
    """Input that the user can mend. The message names the file or image, the value and the cure."""
