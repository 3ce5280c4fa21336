"""Pictures and sounds of jobs, from stored bytes or a URL to pixels and samples, within limits.

Read `reader.py` first. `decode_process.py` is the program of the processes that decode: no file
format is read anywhere else. `decoder.py` starts them and holds them to their limits.
"""
