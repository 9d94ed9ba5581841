-- The books of one shard.
--
-- branch is fence and escrow in one row. posting is the immutable journal: one row names both its sides by its kind, so it
-- balances by construction, and carries the balances after it. account is the sum of its postings, kept current.

-- Which shard this is, and which of the 4096 buckets of accounts it serves. Written once.
CREATE TABLE shard (
    name text NOT NULL,
    single boolean PRIMARY KEY DEFAULT true CHECK (single)
);

CREATE TABLE bucket (
    bucket smallint PRIMARY KEY CHECK (bucket BETWEEN 0 AND 4095)
);

CREATE TABLE account (
    id text COLLATE "C" PRIMARY KEY,
    currency text NOT NULL,
    available bigint NOT NULL CHECK (available >= 0),
    held bigint NOT NULL CHECK (held >= 0),
    -- 1 open, 2 blocked, 3 closed
    state smallint NOT NULL CHECK (state BETWEEN 1 AND 3),
    -- The number of postings.
    version bigint NOT NULL CHECK (version >= 0),
    -- recorded_at of the newest posting, so that versions and times agree.
    posted_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- What changes stands together, before what does not: then the log of a change has nothing else in it.
CREATE TABLE branch (
    transaction_id uuid NOT NULL,
    branch smallint NOT NULL,
    -- 1 debit, 2 credit; and at once, each a transaction of its own: 3 issue, 4 burn
    role smallint NOT NULL CHECK (role BETWEEN 1 AND 4),
    -- 1 tried, 2 refused, 3 confirmed, 4 cancelled, 5 vetoed, 6 stopped
    state smallint NOT NULL CHECK (state BETWEEN 1 AND 6),
    decided_at timestamptz,
    -- Why it was refused or vetoed.
    refusal text CHECK ((refusal IS NOT NULL) = (state IN (2, 5))),
    fenced_at timestamptz NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    account text COLLATE "C" NOT NULL,
    -- The whole transaction, as coordinator/core/src/descriptor.rs encodes it.
    descriptor bytea NOT NULL,
    PRIMARY KEY (transaction_id, branch)
) PARTITION BY RANGE (transaction_id);

-- For whoever looks at what is new, or for the fences of one account: of each 32 pages it keeps the times between which their rows
-- were written, and a Bloom filter of their accounts. It costs next to nothing, since rows stand in the order of that time. It is
-- one index and not two: of two the planner takes the one by time alone, and reads all rows since then (measured: 53,000 pages instead of 340).
CREATE INDEX branch_by_time ON branch USING brin (fenced_at, account text_bloom_ops) WITH (pages_per_range = 32);

CREATE TABLE posting (
    version bigint NOT NULL CHECK (version > 0),
    amount bigint NOT NULL CHECK (amount > 0),
    available_after bigint NOT NULL CHECK (available_after >= 0),
    held_after bigint NOT NULL CHECK (held_after >= 0),
    recorded_at timestamptz NOT NULL,
    transaction_id uuid NOT NULL,
    branch smallint NOT NULL,
    -- 1 issue, 2 burn, 3 hold, 4 release, 5 settle, 6 pay; see the view entry
    kind smallint NOT NULL CHECK (kind BETWEEN 1 AND 6),
    account text COLLATE "C" NOT NULL
) PARTITION BY RANGE (recorded_at);
-- Not unique: over partitions it could not be. That versions have no gap and no twin is the account row's guard.
CREATE INDEX posting_by_account ON posting (account, version);
-- As for fences.
CREATE INDEX posting_by_time ON posting USING brin (recorded_at) WITH (pages_per_range = 32);

-- Each kind of posting: which book it is taken from and which it is added to, and what it does to the account.
CREATE TABLE posting_kind (
    kind smallint PRIMARY KEY,
    name text NOT NULL,
    debit text NOT NULL,
    credit text NOT NULL,
    available_change smallint NOT NULL,
    held_change smallint NOT NULL
);
INSERT INTO posting_kind VALUES
    (1, 'issue', 'world', 'available', 1, 0),
    (2, 'burn', 'available', 'world', -1, 0),
    (3, 'hold', 'available', 'escrow', -1, 1),
    (4, 'release', 'escrow', 'available', 1, -1),
    (5, 'settle', 'escrow', 'clearing', 0, -1),
    (6, 'pay', 'clearing', 'available', 1, 0);

-- The journal as classical double entry: two rows for each posting, which cancel out.
CREATE VIEW entry AS
SELECT p.transaction_id, p.branch, p.recorded_at, k.name AS kind, s.book,
       CASE WHEN s.book IN ('available', 'escrow') THEN p.account END AS account, s.sign * p.amount AS change
FROM posting p
JOIN posting_kind k USING (kind)
CROSS JOIN LATERAL (VALUES (k.debit, -1), (k.credit, 1)) AS s (book, sign);

-- Counts a write's rows inside the statement, so that the COMMIT may follow it without a round trip between.
CREATE FUNCTION expect_rows(actual bigint, expected bigint, what text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF actual <> expected THEN
        RAISE EXCEPTION '% of % % written: somebody else changed them', actual, expected, what
            USING ERRCODE = 'serialization_failure';
    END IF;
END $$;

-- Puts what is new into the summaries of an index, of the partitions whose names come after one. Only the index's owner may, and
-- the engine is none. It looks nothing up by a name that the engine could have given to something else.
CREATE FUNCTION summarize(brin regclass, beyond text) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(brin_summarize_new_values(i.inhrelid))
    FROM pg_inherits i JOIN pg_index x ON x.indexrelid = i.inhrelid JOIN pg_class c ON c.oid = x.indrelid
    WHERE i.inhparent = brin AND c.relname::text COLLATE "C" > beyond;
$$;

-- What people may ask with `tccctl sql --shard`: numbers as names. They are part of the product: columns may be added, and are
-- neither renamed nor taken away.
CREATE VIEW tcc_accounts AS
SELECT id, currency, available, held, (ARRAY['OPEN', 'BLOCKED', 'CLOSED'])[state] AS state, version, posted_at, created_at FROM account;

CREATE VIEW tcc_branches AS
SELECT transaction_id, branch, (ARRAY['DEBIT', 'CREDIT', 'ISSUE', 'BURN'])[role] AS role,
       (ARRAY['TRIED', 'REFUSED', 'CONFIRMED', 'CANCELLED', 'VETOED', 'STOPPED'])[state] AS state, refusal, account, amount,
       fenced_at, decided_at
FROM branch;

CREATE VIEW tcc_postings AS
SELECT p.account, p.version, k.name AS kind, p.amount, p.available_after, p.held_after, p.recorded_at, p.transaction_id, p.branch
FROM posting p JOIN posting_kind k USING (kind);
