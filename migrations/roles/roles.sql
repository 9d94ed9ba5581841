-- The roles of tcc, as `tccd roles` prints them. Run it in each database, as a superuser; running it again changes nothing.
--
-- None of them can log in. Make logins of your own, each a member of one:
--     CREATE ROLE tccd LOGIN PASSWORD '…' IN ROLE tcc_engine;
--     CREATE ROLE tccd_maintainer LOGIN PASSWORD '…' IN ROLE tcc_maintainer;
--     CREATE ROLE tccd_migrator LOGIN PASSWORD '…' IN ROLE tcc_migrator;
-- What each may do follows when tccd next prepares the database (at its start, or with `tccd migrate`).
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY ['tcc_migrator', 'tcc_maintainer', 'tcc_engine', 'tcc_reader', 'tcc_auditor'] LOOP
        IF to_regrole(name) IS NULL THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
END $$;

-- Creates and changes tables, and hands those with partitions over to the maintainer.
GRANT tcc_maintainer TO tcc_migrator;
GRANT USAGE, CREATE ON SCHEMA public TO tcc_migrator, tcc_maintainer;
GRANT USAGE ON SCHEMA public TO tcc_engine, tcc_reader, tcc_auditor;
-- Nobody else makes anything here.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
-- Which transactions of other instances are still running: what they write is not visible yet.
GRANT pg_read_all_stats TO tcc_engine, tcc_maintainer, tcc_auditor;
