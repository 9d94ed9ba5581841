-- The same transfer, ended by two-phase commit on one server, without any log of a coordinator.
\set one random(1, :accounts)
\set other 1 + (:one + random(0, :accounts - 2)) % :accounts
\set low least(:one, :other)
\set high greatest(:one, :other)
\set amount random(1, 100) * (2 * random(0, 1) - 1)
\set back -:amount
BEGIN;
UPDATE accounts SET balance = balance - :amount WHERE id = :low;
UPDATE accounts SET balance = balance + :amount WHERE id = :high;
INSERT INTO journal (account, other, amount) VALUES (:low, :high, :back);
INSERT INTO journal (account, other, amount) VALUES (:high, :low, :amount);
-- The name of a prepared transaction is a literal, which takes no variable in prepared mode: tcc-bench replaces the next line
-- by a tree of \if on :client_id with a pair of literals for each client.
PREPARE TRANSACTION 'transfer-CLIENT'; COMMIT PREPARED 'transfer-CLIENT';
