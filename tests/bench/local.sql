-- One transfer within one database: two balances and two lines of the journal, in one transaction. The account with the
-- smaller id is locked first, so that transfers cannot deadlock.
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
COMMIT;
