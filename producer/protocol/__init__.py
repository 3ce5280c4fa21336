"""The wire: key names, the Lua scripts, their calls and replies, and how records are read.

Read `keys.py` first, then `lua/commands/claim.lua` with `calls/jobs.py` beside it.
`docs/protocol.md` is the contract. This package does no input or output and imports no other
package of ours.
"""
