-- What each role may do in the coordinator's database. The migrator runs it after a migration, and when the roles are new.
-- Whoever adds a table or lets the engine write another column adds it here: a test runs the engine under its role.

-- Whoever attaches and drops partitions must own the tables.
DO $$
DECLARE
    name regclass;
BEGIN
    FOR name IN
        SELECT c.oid FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
        WHERE coalesce(i.inhparent, c.oid) IN ('transaction'::regclass, 'wakeup'::regclass)
          AND c.relkind IN ('r', 'p') AND c.relowner <> 'tcc_maintainer'::regrole
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO tcc_maintainer', name);
    END LOOP;
END $$;

GRANT SELECT ON transaction, wakeup, instance, slot, shard, bucket, head, sweep, audited, finding, attention, idempotency,
    open_count, operator_action, plan, plan_item, participant, refinery_schema_history TO tcc_engine, tcc_maintainer, tcc_auditor;
-- Before a partition is dropped it is compared, and what was forgotten is woken.
GRANT INSERT ON wakeup TO tcc_maintainer;

GRANT INSERT ON transaction, wakeup, instance, head, sweep, audited, finding, attention, idempotency, open_count, operator_action,
    plan, plan_item, participant TO tcc_engine;
-- What was agreed does not change: not the descriptor, not the due time, not the id.
GRANT UPDATE (phase, cause, attention, flipped, held_at, decided_at, settled_at, reason) ON transaction TO tcc_engine;
GRANT UPDATE (owner, epoch, watermark) ON slot TO tcc_engine;
GRANT UPDATE (lost, resumed, drained) ON shard TO tcc_engine;
GRANT UPDATE ON instance, head, sweep, audited, attention, participant TO tcc_engine;
-- A key may be forgotten in its time, and never stands for something else.
GRANT UPDATE (look_at) ON idempotency TO tcc_engine;
GRANT UPDATE (open) ON open_count TO tcc_engine;
-- What a plan says does not change, only what became of it. What operators did is written and never changed.
GRANT UPDATE (started_at) ON plan TO tcc_engine;
GRANT UPDATE (outcome, detail) ON plan_item TO tcc_engine;
-- Its own housekeeping. Nothing that is evidence can be deleted.
GRANT DELETE ON instance, head, attention, idempotency, participant TO tcc_engine;

-- How things are, without saying whose they are.
GRANT SELECT (id, phase, cause, attention, flipped, held_at, decided_at, settled_at, reason, created_at, due_at, on_maturity,
              slot, lane) ON transaction TO tcc_reader;
GRANT SELECT ON wakeup, instance, slot, shard, head, sweep, audited, attention TO tcc_reader;
GRANT SELECT (number, found_at, kind, shard) ON finding TO tcc_reader;

-- The views that people ask. Whose a transaction is stands in none of them; who acted, and what on, not everybody may know.
GRANT SELECT ON tcc_transactions, tcc_attention, tcc_shards, tcc_instances TO tcc_reader, tcc_engine, tcc_auditor;
GRANT SELECT ON tcc_actions, tcc_findings, tcc_quotas TO tcc_engine, tcc_auditor;
