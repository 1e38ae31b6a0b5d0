"""Every error that a user can cause, and one that a machine can.

Library code raises these; only the command line catches them and prints them without a traceback. Anything else that
is raised is a bug in SST-Merge and keeps its traceback.

A message says what is wrong with which value, where, and what to do about it.
"""


class SSTMergeError(Exception):
    """Base of every error that is the input's fault; exit code 1."""

    exit_code = 1


class ConfigError(SSTMergeError):
    """A run file or an option is wrong."""


class DataError(SSTMergeError):
    """A data set cannot be read, lacks a column, or overlaps with another."""


class AdapterError(SSTMergeError):
    """An adapter folder cannot be read, or two adapters do not fit together."""


class ModelError(SSTMergeError):
    """The base model cannot be had, or does not fit the adapters."""


class StatisticsError(SSTMergeError):
    """Calibration statistics are missing or were made for something else."""


class RunFolderError(SSTMergeError):
    """A run folder was made with other settings, or cannot be written."""


class NumericalError(SSTMergeError):
    """A linear-algebra problem has no trustworthy solution, or a training diverges."""


class InvalidResultError(SSTMergeError):
    """The evaluation ran but supports no statement at all; exit code 3."""

    exit_code = 3
