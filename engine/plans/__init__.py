"""Plans: jobs that take several requests of the engine, and the section of a result they make.

Read `plan.py` first, then `runner.py`. `table.py` lists the plans by the field of a job that asks
for them. The engine itself knows nothing of plans: to it, their requests are like any others.
"""
