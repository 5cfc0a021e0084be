"""Import of customers, products, competitors' prices, interactions and transactions.

`kinds` says what each kind holds, `values` how one value is read, `files` how rows come out of a
file, `quality` what is learnt about the data on the way, `load` how rows get into the database, and
`jobs` ties them together: resumable, repeatable, and with a list of what was refused.
"""
