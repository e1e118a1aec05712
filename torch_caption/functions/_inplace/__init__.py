"""The steps and loops of `functions` in place: faster, for first derivatives and inference alone.

Each has the name of what it replaces, with a trailing underscore, and is tested by the same cases. The Functions choose
them where nothing differentiates, maps or traces what is overwritten (`_common.may_overwrite`, `_common.new_cache`).
"""
