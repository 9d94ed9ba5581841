-- The tables of the baseline: what people would write by hand for transfers within one database. :accounts and :funds become numbers.
-- fillfactor 50 as in tcc's own tables, so that updates stay on their page here, too.
CREATE TABLE accounts (
    id bigint PRIMARY KEY,
    balance bigint NOT NULL CHECK (balance >= 0)
) WITH (fillfactor = 50);
CREATE TABLE journal (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account bigint NOT NULL,
    other bigint NOT NULL,
    amount bigint NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO accounts SELECT n, :funds FROM generate_series(1, :accounts) AS n;
VACUUM ANALYZE accounts;
CHECKPOINT;
