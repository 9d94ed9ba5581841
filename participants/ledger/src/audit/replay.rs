//! Every balance of a shard, rebuilt from its postings alone.
//!
//! The balances that postings carry and those of the account rows are what is to be checked, so they are not used: what each
//! kind of posting does to an account is summed up from its first one on. The server adds up and sends one row for each
//! account, and they are compared as they come, so that it takes no memory here, however many there are.

use super::{LIMIT, ShardFinding, snapshot};
use futures::TryStreamExt as _;
use std::{collections::BTreeMap, pin::pin};
use tcc_core::Timestamp;
use tokio_postgres::{Client, Row, types::ToSql};

/// One row for each account that has postings up to then, or a row of its own.
const REPLAY: &str = "\
-- replay
WITH rebuilt AS (
    SELECT p.account, count(*) AS postings, sum(k.available_change * p.amount) AS available,
           sum(k.held_change * p.amount) AS held
    FROM posting p JOIN posting_kind k USING (kind)
    WHERE p.recorded_at <= coalesce($1::timestamptz, 'infinity')
    GROUP BY p.account
),
posted AS (
    SELECT DISTINCT ON (account) account, version, available_after, held_after
    FROM posting
    WHERE recorded_at <= coalesce($1::timestamptz, 'infinity')
    ORDER BY account, version DESC, recorded_at DESC
)
SELECT coalesce(a.id, r.account) AS account, a.currency, r.postings, r.available::text, r.held::text,
       p.version AS posted_version, p.available_after, p.held_after, a.version, a.available AS stated_available,
       a.held AS stated_held
FROM rebuilt r
JOIN posted p USING (account)
FULL JOIN account a ON a.id = r.account";

/// What a shard's balances are, by its postings.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    /// How many accounts there are.
    pub accounts: i64,
    /// How many postings were added up.
    pub postings: i64,
    /// What the accounts of each currency have.
    pub totals: Vec<Total>,
    /// What is wrong; at most [`LIMIT`] of each kind.
    pub findings: Vec<ShardFinding>,
}

/// What the accounts of one currency have, in minor units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Total {
    /// Which.
    pub currency: String,
    /// What can be spent.
    pub available: i128,
    /// What is frozen in outgoing holds.
    pub held: i128,
}

/// An account: as it is rebuilt, and as it is said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rebuilt {
    account: String,
    rebuilt: Balances,
    /// What its last posting says.
    posted: Balances,
    /// What its row says, if there is one, and if it is to be compared.
    stated: Option<Balances>,
}

/// Balances, and the number of postings that led to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Balances {
    available: i128,
    held: i128,
    version: i64,
}

/// Rebuilds every balance as it was at a time, or as it is now, and compares. Tells how many of how many accounts are done.
pub(crate) async fn replay(
    client: &mut Client,
    at: Option<Timestamp>,
    told: impl Fn(usize, usize),
) -> Result<Replay, String> {
    let text = |e: tokio_postgres::Error| e.to_string();
    let reading = snapshot(client).await.map_err(text)?;
    let row = reading.query_one("SELECT count(*) FROM account", &[]).await.map_err(text)?;
    let all = row.get::<_, i64>(0) as usize;
    let mut replay = Replay::default();
    let mut totals: BTreeMap<String, Total> = BTreeMap::new();
    let parameters = [&at as &(dyn ToSql + Sync)];
    let mut rows = pin!(reading.query_raw(REPLAY, parameters).await.map_err(text)?);
    while let Some(row) = rows.try_next().await.map_err(text)? {
        let account = Rebuilt::read(&row, at.is_none())?;
        replay.accounts += 1;
        replay.postings += row.get::<_, Option<i64>>("postings").unwrap_or_default();
        if let Some(currency) = row.get::<_, Option<String>>("currency") {
            let total = totals
                .entry(currency)
                .or_insert_with_key(|key| Total { currency: key.clone(), ..Total::default() });
            total.available += account.rebuilt.available;
            total.held += account.rebuilt.held;
        }
        for finding in account.judge(at.is_none()) {
            if replay.findings.iter().filter(|known| known.kind == finding.kind).count() < LIMIT as usize {
                replay.findings.push(finding);
            }
        }
        let done = replay.accounts as usize;
        if done.is_multiple_of(1_000) {
            // Postings may name an account that is not there.
            told(done, all.max(done));
        }
    }
    told(replay.accounts as usize, replay.accounts as usize);
    replay.totals = totals.into_values().collect();
    Ok(replay)
}

impl Rebuilt {
    fn read(row: &Row, is_now: bool) -> Result<Self, String> {
        let number = |column: &str| i128::from(row.get::<_, Option<i64>>(column).unwrap_or_default());
        let sum = |column: &str| match row.get::<_, Option<&str>>(column) {
            None => Ok(0),
            Some(digits) => digits.parse::<i128>().map_err(|_| format!("a sum of postings is {digits}")),
        };
        let is_there = row.get::<_, Option<&str>>("currency").is_some();
        Ok(Self {
            account: row.get("account"),
            rebuilt: Balances {
                available: sum("available")?,
                held: sum("held")?,
                version: row.get::<_, Option<i64>>("postings").unwrap_or_default(),
            },
            posted: Balances {
                available: number("available_after"),
                held: number("held_after"),
                version: row.get::<_, Option<i64>>("posted_version").unwrap_or_default(),
            },
            stated: (is_now && is_there).then(|| Balances {
                available: number("stated_available"),
                held: number("stated_held"),
                version: row.get::<_, Option<i64>>("version").unwrap_or_default(),
            }),
        })
    }

    fn judge(&self, is_now: bool) -> Vec<ShardFinding> {
        let finding = |kind, expected, found| ShardFinding {
            kind,
            transaction: None,
            account: Some(self.account.clone()),
            expected,
            found,
        };
        let mut findings = Vec::new();
        if self.rebuilt != self.posted {
            let found = format!("posted {}", self.posted);
            findings.push(finding("REPLAY_MISMATCH", self.rebuilt.to_string(), found));
        }
        match self.stated {
            Some(stated) if stated != self.rebuilt => {
                findings.push(finding("BALANCE_MISMATCH", self.rebuilt.to_string(), stated.to_string()));
            }
            None if is_now => {
                findings.push(finding("BALANCE_MISMATCH", self.rebuilt.to_string(), "no account".into()));
            }
            _ => {}
        }
        findings
    }
}

impl std::fmt::Display for Balances {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "available {}, held {}, version {}", self.available, self.held, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balances(available: i128, held: i128, version: i64) -> Balances {
        Balances { available, held, version }
    }

    #[test]
    fn an_account_is_what_its_postings_add_up_to() {
        let right = balances(90, 10, 2);
        let account = Rebuilt { account: "alice".into(), rebuilt: right, posted: right, stated: Some(right) };
        let kinds = |account: &Rebuilt, is_now| -> Vec<&str> {
            account.judge(is_now).iter().map(|finding| finding.kind).collect()
        };

        assert_eq!(kinds(&account, true), [""; 0]);
        assert_eq!(kinds(&Rebuilt { stated: None, ..account.clone() }, false), [""; 0], "as it was once");
        let posted = balances(91, 10, 2);
        assert_eq!(kinds(&Rebuilt { posted, ..account.clone() }, true), ["REPLAY_MISMATCH"]);
        let twin = balances(90, 10, 3);
        assert_eq!(kinds(&Rebuilt { posted: twin, ..account.clone() }, true), ["REPLAY_MISMATCH"]);
        let stated = Some(balances(90, 11, 2));
        assert_eq!(kinds(&Rebuilt { stated, ..account.clone() }, true), ["BALANCE_MISMATCH"]);
        assert_eq!(
            kinds(&Rebuilt { stated: None, ..account }, true),
            ["BALANCE_MISMATCH"],
            "its row is gone"
        );
    }
}
