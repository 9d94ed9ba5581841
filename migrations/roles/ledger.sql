-- What each role may do in a shard's database. The migrator runs it after a migration, and when the roles are new.
-- Whoever adds a table or lets the engine write another column adds it here: a test runs the engine under its role.

-- Whoever attaches and drops partitions must own the tables.
DO $$
DECLARE
    name regclass;
BEGIN
    FOR name IN
        SELECT c.oid FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
        WHERE coalesce(i.inhparent, c.oid) IN ('branch'::regclass, 'posting'::regclass)
          AND c.relkind IN ('r', 'p') AND c.relowner <> 'tcc_maintainer'::regrole
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO tcc_maintainer', name);
    END LOOP;
END $$;

-- Lists read one partition of the fences at a time, by its name. Those to come get the same right when they are made.
DO $$
DECLARE
    name regclass;
BEGIN
    FOR name IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'branch'::regclass LOOP
        EXECUTE format('GRANT SELECT ON %s TO tcc_engine', name);
    END LOOP;
END $$;

GRANT SELECT ON account, branch, posting, posting_kind, entry, shard, bucket, refinery_schema_history
    TO tcc_engine, tcc_maintainer, tcc_auditor;

-- The journal is written and never changed. Of a fence only what a decision changes can be written, of an account not whose it
-- is and in which currency. Nothing can be deleted.
GRANT INSERT ON account, branch, posting TO tcc_engine;
GRANT UPDATE (available, held, state, version, posted_at) ON account TO tcc_engine;
GRANT UPDATE (state, refusal, decided_at) ON branch TO tcc_engine;
REVOKE EXECUTE ON FUNCTION summarize(regclass, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION summarize(regclass, text) TO tcc_engine;

-- Rights on columns cannot say from what to what: this can. A fence moves once, from tried (1) to confirmed (3), cancelled (4)
-- or vetoed (5). Looked at after the change, so that the row is not locked a second time, and in a condition, so that a right
-- move calls no function. It binds everybody but the owner, who could drop it.
CREATE OR REPLACE FUNCTION refuse_move() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'fence % of % cannot move from % to %', OLD.branch, OLD.transaction_id, OLD.state, NEW.state
        USING ERRCODE = 'insufficient_privilege';
END $$;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'branch'::regclass AND tgname = 'moves_once') THEN
        CREATE TRIGGER moves_once AFTER UPDATE ON branch FOR EACH ROW
            WHEN (OLD.state <> 1 OR NEW.state NOT IN (3, 4, 5)) EXECUTE FUNCTION refuse_move();
    END IF;
END $$;

-- How much there is, without saying whose it is.
GRANT SELECT (currency, available, held, state, version, posted_at, created_at) ON account TO tcc_reader;
GRANT SELECT (role, state, refusal, fenced_at, decided_at, amount) ON branch TO tcc_reader;
GRANT SELECT (kind, amount, recorded_at) ON posting TO tcc_reader;
GRANT SELECT ON posting_kind, shard, bucket TO tcc_reader;

-- The views that people ask. They say whose everything is.
GRANT SELECT ON tcc_accounts, tcc_branches, tcc_postings TO tcc_engine, tcc_auditor;
