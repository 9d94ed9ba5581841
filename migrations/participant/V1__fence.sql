-- What the SDK keeps in a participant's own database, beside the tables of its owner.

-- Which participant this is. Written once.
CREATE TABLE tcc_participant (
    name text NOT NULL,
    single boolean PRIMARY KEY DEFAULT true CHECK (single)
);

-- The fences: one for each branch of a transaction that was ever tried or cancelled here. Each commits together with its
-- effect. A fence may be deleted only when its transaction is final and can no longer be asked for.
CREATE TABLE tcc_fence (
    transaction_id uuid NOT NULL,
    branch smallint NOT NULL CHECK (branch >= 0),
    -- 1 tried, 2 refused, 3 confirmed, 4 cancelled, 5 vetoed, 6 stopped, 7 confirming
    state smallint NOT NULL CHECK (state BETWEEN 1 AND 7),
    -- Why it was refused or vetoed.
    refusal text CHECK ((refusal IS NOT NULL) = (state IN (2, 5))),
    fenced_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    decided_at timestamptz,
    -- The whole transaction, as it was sent: these very bytes.
    descriptor bytea NOT NULL,
    PRIMARY KEY (transaction_id, branch)
) WITH (fillfactor = 70);
