"""Loggers of a run besides metrics.jsonl: TensorBoard and Weights & Biases, each in a file, none needed to train."""

from lopt.training.loggers.base import Logger, LoggerConfig, Loggers, check_loggers, open_loggers

__all__ = ["Logger", "LoggerConfig", "Loggers", "check_loggers", "open_loggers"]
