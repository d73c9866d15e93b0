"""All departures from New York in 2013 through durable actors and workflows: ``python -m examples.flights``.

`data` the file and its rules, `app` the actors and the workflow, `feed` how rows reach them, `check` the comparison,
`job` all of it.
"""
