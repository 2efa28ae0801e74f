"""The page: trained systems in a browser, `python -m vljax.page --workdir runs/scenes`.

A room for each run, made from its system's request; nothing here knows a system by name.
`rooms` makes a form of a request and a request of a form; `uploads` keeps what is given; `queue`
draws, one request after the other; `app` answers the browser; `static/` is all that it loads.
"""
