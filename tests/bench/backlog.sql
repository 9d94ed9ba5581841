-- Open holds by the million, as tccd itself would have left them after creating each over the API: the same rows in every
-- table, so that the auditor finds nothing and tccd can pay or cancel them. The bench runs it while tccd is stopped, once for
-- each chunk of holds: first on the shards, then on the coordinator, as functions of the hold's number alone, so nothing is
-- sent between servers.
--
-- Hold number n goes from payer n % payers to payee n % payers of the other list, both fixed, so the arithmetic of the books
-- is closed: it is the (n / payers + 1)-th hold of its payer, all of amount 1.

-- Ids are UUIDv7 of increasing times, with random-looking rest; by their last byte they are spread over the slots.
CREATE OR REPLACE FUNCTION pg_temp.hold_id(first_ms bigint, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex(first_ms + n / 200), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid
$$;
-- A descriptor is the encoding of a hold between two accounts whose ids are all of one length: only the two ids differ.
CREATE OR REPLACE FUNCTION pg_temp.descriptor(pieces bytea[], payer text, payee text) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT pieces[1] || payer::bytea || pieces[2] || payee::bytea || pieces[3]
$$;
CREATE TEMP TABLE IF NOT EXISTS pair (n bigint PRIMARY KEY, payer text NOT NULL, payee text NOT NULL, payer_shard int NOT NULL);
