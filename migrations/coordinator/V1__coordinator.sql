-- The coordinator's memory: the schedule and the clients' view. The participants' fences are the truth.

-- Partitioned by week of the id, each with fillfactor 50, so that a change of phase finds room on its page (HOT). For the
-- same reason no index, and no partial index, mentions the phase. What changes stands together, before what does not: then
-- the log of a change has nothing else in it.
CREATE TABLE transaction (
    id uuid PRIMARY KEY,
    -- 1 trying, 2 held, 3 confirming, 4 confirmed, 5 cancelling, 6 cancelled
    phase smallint NOT NULL CHECK (phase BETWEEN 1 AND 6),
    -- 1 refused, 2 vetoed, 3 requested, 4 timed out, 5 matured, 6 operator
    cause smallint CHECK (cause BETWEEN 1 AND 6),
    -- 0 none, 1 retrying, 2 stuck, 3 parked, 4 paused
    attention smallint NOT NULL DEFAULT 0 CHECK (attention BETWEEN 0 AND 4),
    -- The pivot turned the decision round. That happens once at most.
    flipped boolean NOT NULL DEFAULT false,
    held_at timestamptz,
    -- When it was asked for, or found due.
    decided_at timestamptz,
    settled_at timestamptz,
    -- Why it was refused or vetoed.
    reason text,
    created_at timestamptz NOT NULL,
    due_at timestamptz NOT NULL,
    -- What happens at due_at: 1 confirm, 2 cancel
    on_maturity smallint NOT NULL CHECK (on_maturity IN (1, 2)),
    -- Where its wake-ups stand: in which slot, and among those that are due, in which lane.
    slot smallint NOT NULL CHECK (slot BETWEEN 0 AND 255),
    lane smallint NOT NULL CHECK (lane BETWEEN 0 AND 255),
    -- The whole transaction, as coordinator/core/src/descriptor.rs encodes it.
    descriptor bytea NOT NULL,
    -- The context of the request that created it, if that was traced: trace, span and flags.
    trace bytea CHECK (octet_length(trace) = 25),
    -- Who created it and decides about it. Null for a hold, about which its payer does.
    owner text COLLATE "C",
    -- The caller in whose quota it counts as long as it is not final. Null if that had none when it was created.
    counted_for text COLLATE "C"
) PARTITION BY RANGE (id);
-- For lists of them. Holds are listed by their accounts' fences, and are not in it.
CREATE INDEX transaction_by_owner ON transaction (owner, id) WHERE owner IS NOT NULL;

-- The maturity index: look at this transaction at this time. Insert-only; space comes back by dropping whole partitions.
-- A partition gets its index shortly before it is read: insertion into it at random places would cost most of the log.
CREATE TABLE wakeup (
    wake_at timestamptz NOT NULL,
    transaction_id uuid NOT NULL,
    slot smallint NOT NULL,
    lane smallint NOT NULL
) PARTITION BY RANGE (wake_at);

-- A running tccd. Its lease is by this database's clock.
CREATE TABLE instance (
    id uuid PRIMARY KEY,
    -- Its machine and where it listens there.
    address text NOT NULL,
    started_at timestamptz NOT NULL,
    lease_until timestamptz NOT NULL,
    -- How many wake-ups it has settled: one that beats and does not settle any hangs.
    settled bigint NOT NULL,
    -- An operator wants it to leave.
    drained boolean NOT NULL DEFAULT false
) WITH (fillfactor = 10);

-- The 256 slots, into which whoever creates a transaction puts its wake-ups: who serves them, how often that has changed, and
-- up to when everything has been looked at.
CREATE TABLE slot (
    slot smallint PRIMARY KEY CHECK (slot BETWEEN 0 AND 255),
    owner uuid,
    epoch bigint NOT NULL DEFAULT 0,
    watermark timestamptz NOT NULL
) WITH (fillfactor = 20);
INSERT INTO slot (slot, watermark) SELECT n, clock_timestamp() FROM generate_series(0, 255) AS n;

-- Which shard serves which bucket of accounts. Fixed once written.
CREATE TABLE shard (
    name text PRIMARY KEY,
    -- What it has lost, if work on it is stopped because it has lost commits, and how often an operator has let it go on.
    lost text,
    resumed integer NOT NULL DEFAULT 0,
    -- An operator has stopped work on it.
    drained boolean NOT NULL DEFAULT false
);
CREATE TABLE bucket (
    bucket smallint PRIMARY KEY CHECK (bucket BETWEEN 0 AND 4095),
    shard text NOT NULL REFERENCES shard
);

-- Who takes part besides the shards.
CREATE TABLE participant (
    name text COLLATE "C" PRIMARY KEY,
    -- http://HOST:PORT or https://HOST:PORT
    address text NOT NULL,
    -- The authorities of its certificate, PEM. Empty: those of the system.
    ca text NOT NULL,
    may_veto boolean NOT NULL,
    deadline_ms integer NOT NULL CHECK (deadline_ms > 0),
    requests integer NOT NULL CHECK (requests > 0),
    -- It stands in the configuration of an instance; otherwise an operator has added it.
    configured boolean NOT NULL,
    -- An operator lets no new transactions at it.
    drained boolean NOT NULL DEFAULT false,
    added_at timestamptz NOT NULL
);

-- The last fence that each instance has committed on each shard, so that a shard that has lost commits is noticed.
CREATE TABLE head (
    shard text NOT NULL REFERENCES shard,
    instance uuid NOT NULL,
    transaction_id uuid NOT NULL,
    branch smallint NOT NULL,
    state smallint NOT NULL,
    kept_at timestamptz NOT NULL,
    PRIMARY KEY (shard, instance)
) WITH (fillfactor = 20);

-- The orphan sweep of each shard: up to when its fences have been looked at, by the shard's clock, and when the server of this
-- database had started on which that was done last.
CREATE TABLE sweep (
    shard text PRIMARY KEY REFERENCES shard,
    seen_until timestamptz NOT NULL,
    server timestamptz NOT NULL
);

-- Up to when each shard was audited, by the shard's clock, and how many postings that were.
CREATE TABLE audited (
    shard text PRIMARY KEY REFERENCES shard,
    until timestamptz NOT NULL,
    postings bigint NOT NULL
) WITH (fillfactor = 20);

-- What the auditor in the background has found. Evidence: never changed, never deleted.
CREATE TABLE finding (
    number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    found_at timestamptz NOT NULL,
    kind text NOT NULL,
    -- Empty, if it is about none.
    shard text NOT NULL,
    transaction_id text NOT NULL,
    account text NOT NULL,
    expected text NOT NULL,
    found text NOT NULL,
    PRIMARY KEY (kind, shard, transaction_id, account)
);

-- Transactions that need looking at, and why.
CREATE TABLE attention (
    transaction_id uuid PRIMARY KEY,
    -- As transaction.attention.
    kind smallint NOT NULL CHECK (kind BETWEEN 1 AND 4),
    since timestamptz NOT NULL,
    -- How often its participant served others and failed at it.
    attempts integer NOT NULL,
    last_error text NOT NULL,
    next_try timestamptz,
    -- Parked, and settled by hand: nobody needs to look at it any more.
    acknowledged boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);

-- The keys by which callers may ask again for what they created with one. Each fence keeps the key, too, so one that was lost
-- is found again.
CREATE TABLE idempotency (
    caller text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    transaction_id uuid NOT NULL,
    -- When to look whether it may be forgotten.
    look_at timestamptz NOT NULL,
    PRIMARY KEY (caller, key)
);
CREATE INDEX idempotency_by_look ON idempotency (look_at);

-- How many transactions are open in the quota of each caller: the sum over its stripes. Each is written by one connection, with the
-- rows that it counts.
CREATE TABLE open_count (
    caller text COLLATE "C" NOT NULL,
    stripe smallint NOT NULL,
    open bigint NOT NULL,
    PRIMARY KEY (caller, stripe)
) WITH (fillfactor = 20);

-- What operators did: written in the transaction that did it, never changed, never deleted.
CREATE TABLE operator_action (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    acted_at timestamptz NOT NULL,
    action text NOT NULL,
    -- The id of a transaction, or the name of a shard.
    target text NOT NULL,
    -- Who it was, from where, and why.
    actor text NOT NULL,
    address text NOT NULL,
    reason text NOT NULL CHECK (reason <> ''),
    ticket text NOT NULL,
    plan uuid,
    before text NOT NULL,
    after text NOT NULL
);
CREATE INDEX operator_action_by_target ON operator_action (target, number);

CREATE FUNCTION refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are evidence: they are neither changed nor deleted', TG_TABLE_NAME;
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_action
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What an operator has looked at before doing it: exactly these transactions, as they stood then.
CREATE TABLE plan (
    id uuid PRIMARY KEY,
    action text NOT NULL,
    -- How they were chosen, in words.
    selection text NOT NULL,
    actor text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    started_at timestamptz
);
CREATE TABLE plan_item (
    plan uuid NOT NULL REFERENCES plan,
    position integer NOT NULL,
    transaction_id uuid NOT NULL,
    amount bigint NOT NULL,
    currency text NOT NULL,
    phase smallint NOT NULL,
    attention smallint NOT NULL,
    -- Why it would not be done. Null if it would.
    refusal text,
    -- What became of it: done, changed, refused or failed. Null until then.
    outcome text,
    detail text NOT NULL DEFAULT '',
    PRIMARY KEY (plan, position)
);

-- What people may ask with `tccctl sql`: numbers as names, and no account. They are part of the product: columns may be added, and
-- are neither renamed nor taken away.
CREATE VIEW tcc_transactions AS
SELECT id, (ARRAY['TRYING', 'HELD', 'CONFIRMING', 'CONFIRMED', 'CANCELLING', 'CANCELLED'])[phase] AS phase,
       (ARRAY['REFUSED', 'VETOED', 'REQUESTED', 'TIMED_OUT', 'MATURED', 'OPERATOR'])[cause] AS cause, reason,
       (ARRAY['NONE', 'RETRYING', 'STUCK', 'PARKED', 'PAUSED'])[attention + 1] AS attention,
       (ARRAY['CONFIRM', 'CANCEL'])[on_maturity] AS on_maturity, due_at, created_at, held_at, decided_at, settled_at, slot
FROM transaction;

-- What needs attention, and why. Of what has become final meanwhile a row may be left.
CREATE VIEW tcc_attention AS
SELECT a.transaction_id, (ARRAY['RETRYING', 'STUCK', 'PARKED', 'PAUSED'])[a.kind] AS attention, a.since, a.attempts, a.last_error,
       a.next_try, a.acknowledged
FROM attention a JOIN transaction t ON t.id = a.transaction_id AND t.attention = a.kind;

CREATE VIEW tcc_actions AS
SELECT number, acted_at, action, target, actor, address, reason, ticket, plan, before, after FROM operator_action;

CREATE VIEW tcc_findings AS
SELECT number, found_at, kind, shard, transaction_id, expected, found FROM finding;

CREATE VIEW tcc_quotas AS
SELECT caller, sum(open)::bigint AS open FROM open_count GROUP BY caller HAVING sum(open) <> 0;

CREATE VIEW tcc_shards AS
SELECT s.name, CASE WHEN s.lost IS NOT NULL THEN 'LOST COMMITS' WHEN s.drained THEN 'DRAINED' ELSE 'WORKING' END AS state, s.lost,
       (SELECT count(*) FROM bucket b WHERE b.shard = s.name) AS buckets, a.until AS audited_until, a.postings AS audited_postings
FROM shard s LEFT JOIN audited a ON a.shard = s.name;

CREATE VIEW tcc_instances AS
SELECT i.id, i.address, i.started_at, i.lease_until > clock_timestamp() AS alive, i.drained,
       (SELECT count(*) FROM slot s WHERE s.owner = i.id) AS slots
FROM instance i;
