//! Everything at once: each check is a query that returns rows only for what is wrong.

use super::{LIMIT, ShardFinding, snapshot};
use tokio_postgres::Client;

/// What was looked at, and what was wrong.
#[derive(Debug, Clone, Default)]
pub struct ShardAudit {
    /// How many accounts there are.
    pub accounts: i64,
    /// How many postings.
    pub postings: i64,
    /// How many fences.
    pub branches: i64,
    /// Issued minus burned, for each currency, in minor units.
    pub issued: Vec<(String, i64)>,
    /// What is wrong; at most [`LIMIT`] of each kind.
    pub findings: Vec<ShardFinding>,
}

/// Each check: its kind, and a query of (transaction, account, expected, found) for what breaks it. `$1` is the limit.
const CHECKS: &[(&str, &str)] = &[
    // Versions of an account count its postings without a gap.
    (
        "VERSION_GAP",
        "SELECT NULL::text, account, (before + 1)::text, version::text
         FROM (SELECT account, version, lag(version, 1, 0::int8) OVER (PARTITION BY account ORDER BY version) AS before
               FROM posting) p
         WHERE version <> before + 1 LIMIT $1",
    ),
    // Each posting's balances follow from the posting before it.
    (
        "POSTING_CHAIN",
        "SELECT transaction_id::text, account,
                format('available %s, held %s', available_before + k.available_change * amount,
                       held_before + k.held_change * amount),
                format('available %s, held %s', available_after, held_after)
         FROM (SELECT p.*, lag(available_after, 1, 0::int8) OVER w AS available_before,
                      lag(held_after, 1, 0::int8) OVER w AS held_before
               FROM posting p WINDOW w AS (PARTITION BY account ORDER BY version)) p
         JOIN posting_kind k USING (kind)
         WHERE available_after <> available_before + k.available_change * amount
            OR held_after <> held_before + k.held_change * amount LIMIT $1",
    ),
    // Versions and times agree.
    (
        "POSTING_TIME",
        "SELECT transaction_id::text, account, 'not before ' || before, recorded_at::text
         FROM (SELECT p.*, lag(recorded_at) OVER (PARTITION BY account ORDER BY version) AS before FROM posting p) p
         WHERE recorded_at < before LIMIT $1",
    ),
    // An account is what its last posting says.
    (
        "BALANCE_MISMATCH",
        "SELECT NULL::text, coalesce(a.id, p.account),
                format('available %s, held %s, version %s', coalesce(p.available_after, 0), coalesce(p.held_after, 0),
                       coalesce(p.version, 0)),
                CASE WHEN a.id IS NULL THEN 'no account'
                     ELSE format('available %s, held %s, version %s', a.available, a.held, a.version) END
         FROM account a
         FULL JOIN (SELECT DISTINCT ON (account) * FROM posting ORDER BY account, version DESC) p ON p.account = a.id
         WHERE a.id IS NULL
            OR (a.available, a.held, a.version)
               <> (coalesce(p.available_after, 0), coalesce(p.held_after, 0), coalesce(p.version, 0)) LIMIT $1",
    ),
    // What an account holds is the sum of its open debits.
    (
        "ESCROW_MISMATCH",
        "SELECT NULL::text, coalesce(a.id, b.account), coalesce(b.held, 0)::text, coalesce(a.held, 0)::text
         FROM account a
         FULL JOIN (SELECT account, sum(amount) AS held FROM branch WHERE role = 1 AND state = 1 GROUP BY account) b
              ON b.account = a.id
         WHERE coalesce(a.held, 0) <> coalesce(b.held, 0) LIMIT $1",
    ),
    // Each fence has exactly the postings of its role and state, on its account, of its amount.
    (
        "FENCE_MISMATCH",
        "WITH due AS (
             SELECT transaction_id, branch, account, amount,
                    CASE WHEN role = 1 AND state = 1 THEN '{3}'::int2[]
                         WHEN role = 1 AND state = 3 THEN '{3,5}'
                         WHEN role = 1 AND state = 4 THEN '{3,4}'
                         WHEN role = 2 AND state = 3 THEN '{6}'
                         WHEN role = 3 AND state = 3 THEN '{1}'
                         WHEN role = 4 AND state = 3 THEN '{2}'
                         ELSE '{}' END AS kinds
             FROM branch),
         done AS (
             SELECT transaction_id, branch, min(account) AS account, max(account) AS other_account, min(amount) AS amount,
                    max(amount) AS other_amount, array_agg(kind ORDER BY version) AS kinds
             FROM posting GROUP BY transaction_id, branch)
         SELECT coalesce(due.transaction_id, done.transaction_id)::text, coalesce(due.account, done.account),
                format('postings %s of %s', due.kinds, due.amount),
                format('postings %s of %s to %s on %s to %s', done.kinds, done.amount, done.other_amount, done.account,
                       done.other_account)
         FROM due FULL JOIN done USING (transaction_id, branch)
         WHERE coalesce(due.kinds, '{-1}') <> coalesce(done.kinds, '{}')
            OR (done.kinds IS NOT NULL
                AND (done.account, done.other_account, done.amount, done.other_amount)
                    <> (due.account, due.account, due.amount, due.amount)) LIMIT $1",
    ),
    // An account lives where its bucket is.
    (
        "WRONG_SHARD",
        "SELECT NULL::text, id, 'a bucket of this shard', bucket::text
         FROM (SELECT id, (get_byte(hash, 0) * 256 + get_byte(hash, 1)) % 4096 AS bucket
               FROM account, sha256(convert_to(id, 'UTF8')) AS hash) a
         WHERE NOT EXISTS (SELECT FROM bucket b WHERE b.bucket = a.bucket) LIMIT $1",
    ),
];

/// Runs all checks in one snapshot. Tells how many of how many are done.
pub(crate) async fn run(
    client: &mut Client,
    told: impl Fn(usize, usize),
) -> Result<ShardAudit, tokio_postgres::Error> {
    let snapshot = snapshot(client).await?;
    let mut audit = ShardAudit::default();
    for (done, (kind, sql)) in CHECKS.iter().enumerate() {
        told(done, CHECKS.len());
        for row in snapshot.query(*sql, &[&LIMIT]).await? {
            audit.findings.push(ShardFinding {
                kind,
                transaction: row.get(0),
                account: row.get(1),
                expected: row.get::<_, Option<String>>(2).unwrap_or_else(|| "nothing".into()),
                found: row.get::<_, Option<String>>(3).unwrap_or_else(|| "nothing".into()),
            });
        }
    }
    let counts = "SELECT (SELECT count(*) FROM account), (SELECT count(*) FROM posting), (SELECT count(*) FROM branch)";
    let row = snapshot.query_one(counts, &[]).await?;
    (audit.accounts, audit.postings, audit.branches) = (row.get(0), row.get(1), row.get(2));
    let issued = "SELECT a.currency, sum(CASE p.kind WHEN 1 THEN p.amount ELSE -p.amount END)::int8
         FROM posting p JOIN account a ON a.id = p.account WHERE p.kind IN (1, 2) GROUP BY a.currency ORDER BY a.currency";
    for row in snapshot.query(issued, &[]).await? {
        audit.issued.push((row.get(0), row.get(1)));
    }
    snapshot.commit().await?;
    told(CHECKS.len(), CHECKS.len());
    Ok(audit)
}
