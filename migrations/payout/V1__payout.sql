-- What tcc-payout keeps beside the fences of its participant.

-- Whom it pays. Its owner writes this table; tcc-payout writes reserved and paid, and nothing else.
CREATE TABLE payout_recipient (
    recipient text PRIMARY KEY CHECK (length(recipient) BETWEEN 1 AND 256),
    currency text NOT NULL,
    -- What the provider knows it by: {destination} of the templates.
    destination text NOT NULL,
    -- Blocked ones are refused; what was reserved before and is not asked for yet is vetoed.
    blocked boolean NOT NULL DEFAULT false,
    -- How much may be paid in all, in minor units; NULL: anything.
    most bigint CHECK (most >= 0),
    reserved bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    paid bigint NOT NULL DEFAULT 0 CHECK (paid >= 0)
);

-- The payouts: one for each branch that was reserved. Each changes together with its fence.
CREATE TABLE payout (
    transaction_id uuid NOT NULL,
    branch smallint NOT NULL CHECK (branch >= 0),
    recipient text NOT NULL REFERENCES payout_recipient,
    -- As it was when it was reserved: what is asked again is asked with the same words.
    destination text NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    currency text NOT NULL,
    due_at timestamptz NOT NULL,
    -- 1 reserved, 2 in line, 3 asked, 4 paid, 5 vetoed, 6 cancelled
    state smallint NOT NULL DEFAULT 1 CHECK (state BETWEEN 1 AND 6),
    reserved_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Committed before the provider was asked for the first time.
    asked_at timestamptz,
    ended_at timestamptz,
    -- The provider's, once it is paid.
    reference text,
    -- Why it was vetoed, or why it is not known yet: for people.
    remark text,
    -- Who has found out by hand what became of it, and how.
    settled_by text,
    PRIMARY KEY (transaction_id, branch),
    CHECK ((asked_at IS NOT NULL) OR state <> 3),
    CHECK ((ended_at IS NOT NULL) = (state >= 4))
) WITH (fillfactor = 70);

-- Statements are compared by time.
CREATE INDEX payout_reserved ON payout USING brin (reserved_at);

-- What is to be asked for, or asked again, first due first.
CREATE INDEX payout_line ON payout (due_at, transaction_id, branch) WHERE state IN (2, 3);
