"""The command line: arguments in, sentences, JSON and exit codes out.

Owns what a person reads and types, and nothing else: a command turns its arguments into calls of the rooms below and
their answers into text.  Refuses to know SQL and how rows move.

Invariants:

* Data goes to stdout; messages, progress and errors go to stderr.
* Every error ends in the exit code of its class and says what to do; a traceback is shown only when asked for, and
  then without values.
* A password is never taken from an argument.
"""
