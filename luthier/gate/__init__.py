"""The data gate: what is in the data, row by row, and whether it may be trained on.

    rows        what a rule looks at, and what it reports
    rules       what a rule says of itself: its reason, its remedy and its thresholds
    table       every rule of every topic
    policy      which rules hold, how strictly: a file that a user writes, kept with the run
    intake      rules about the files themselves
    store       a data set on disk: DuckDB over Parquet
    audit       the chain on one page: files -> rows -> hits -> findings -> decision
    clean       the same with the mends applied, and a ledger of every row that was changed or left out

    reading, fields, look              files to rows, rows to tables
    workers, cluster                   that in several processes, on several machines
    summary, findings                  the store to a report and to a run's findings
    version, diff, show                a clean data set as a file; two of them; one row

    form, hidden, marked, private      rules that look at one row
    duplicates, leakage, times, noise, poison, balance, fit, provenance     rules that look at the whole set

Free of torch. Nothing here reaches a network. A rule's threshold stands in the table and may be set by the policy.
"""
