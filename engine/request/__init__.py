"""A request: its sampling parameters, its tokens, and the outputs that it reports.

Read `sampling_params.py` first, then `request.py`. This package never imports torch.
"""
