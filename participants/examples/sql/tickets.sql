-- A participant without code: three functions for tcc-sql. A branch's payload is {"event": …, "count": …}.
--
--   TCC_PARTICIPANT=tickets TCC_DATABASE_URL=postgresql:///tickets \
--   TCC_RESERVE=tickets.reserve TCC_CONFIRM=tickets.confirm TCC_CANCEL=tickets.cancel tcc-sql

CREATE SCHEMA tickets;

CREATE TABLE tickets.event (name text PRIMARY KEY, free int NOT NULL CHECK (free >= 0), sold int NOT NULL DEFAULT 0);

-- NULL: it is reserved. A text: no, and for ever no.
CREATE FUNCTION tickets.reserve(transaction uuid, branch integer, payload jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    wanted int := CASE WHEN payload ->> 'count' ~ '^[1-9][0-9]{0,5}$' THEN (payload ->> 'count')::int END;
BEGIN
    IF wanted IS NULL THEN
        RETURN 'NO_SUCH_COUNT';
    END IF;
    UPDATE tickets.event SET free = free - wanted WHERE name = payload ->> 'event' AND free >= wanted;
    IF NOT FOUND THEN
        RETURN 'SOLD_OUT';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION tickets.confirm(transaction uuid, branch integer, payload jsonb) RETURNS void LANGUAGE sql AS $$
    UPDATE tickets.event SET sold = sold + (payload ->> 'count')::int WHERE name = payload ->> 'event'
$$;

CREATE FUNCTION tickets.cancel(transaction uuid, branch integer, payload jsonb) RETURNS void LANGUAGE sql AS $$
    UPDATE tickets.event SET free = free + (payload ->> 'count')::int WHERE name = payload ->> 'event'
$$;
