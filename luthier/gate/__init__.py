"""The data gate: what is in the data, row by row, and whether it may be trained on.

    rows        what a rule looks at, and what it reports
    rules       what a rule says of itself: its reason, its remedy and its thresholds
    table       every rule of every topic
    policy      which rules hold, how strictly: a file that a user writes, kept with the run
    intake      rules about the files themselves
    store       a data set on disk: DuckDB over Parquet
    audit       the chain on one page: files -> rows -> hits -> findings -> decision
    clean       the same with the mends applied, and a ledger of every row that was changed or left out

    form, hidden, private        rules that look at one row
    duplicates, leakage, noise, poison, balance, fit, provenance     rules that look at the whole set

Free of torch. Nothing here reaches a network. A rule's threshold stands in the table and may be set by the policy.
"""
