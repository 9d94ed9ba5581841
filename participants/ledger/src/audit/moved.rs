//! What moved in a slice of time: the part of an audit that can go on for ever.
//!
//! Postings are the only thing that moves money, fences the only thing that permits it, and both carry the time at which
//! they were written. So an audit can follow a shard: slice after slice, what was recorded in it and the fences that were
//! written in it are read in one snapshot and compared. What was true of the books before a slice, and of each posting in
//! it, is true of them after it.
//!
//! * A posting follows from the one before it: version, balances, time. A second one of a version shows there, or by its time.
//! * A posting is one that its fence permits, on its account, of its amount. It is stamped with the time of its fence, with which
//!   it was committed: of its Try or of its decision. The exception is an account whose last posting is later than that
//!   time, because the clock was set back. So a second payment for the same fence shows by its time, however much later
//!   it comes, and without a look at all the other postings.
//! * A fence that was written in the slice has the posting of its Try in it, and, if it was decided in it, of its decision.
//!
//! What does not move is not seen: a row that was changed or deleted by hand after its slice was audited, or a fence that
//! was moved by hand later than the slice in which it was written. [`super::run`] sees that.

use super::{LIMIT, ShardFinding, snapshot};
use crate::{
    books::{ISSUE, PostingKind},
    executor::role_from_number,
    schema::POSTING,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use tcc_core::{FenceState, Refusal, Role, Timestamp};
use tcc_participant::{partitions::WEEK, session::BY_ID};
use tokio_postgres::{Client, Row, Transaction};
use uuid::Uuid;

/// The oldest partition of postings: none is older.
const OLDEST: &str = "\
-- oldest_postings
SELECT min(c.relname)::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'posting'::regclass";

const COUNT: &str = "\
-- count_moved
SELECT (SELECT count(*) FROM posting WHERE recorded_at > $1 AND recorded_at <= $2)
     + (SELECT count(*) FROM branch WHERE fenced_at > $1 AND fenced_at <= $2)";

/// Of one part of the accounts, if there is more in a microsecond than is read at a time.
const NEW_POSTINGS: &str = "\
-- new_postings
SELECT account, version, transaction_id, branch, kind, amount, available_after, held_after, recorded_at
FROM posting
WHERE recorded_at > $1 AND recorded_at <= $2 AND ($3::int8 = 1 OR abs(hashtext(account)::int8) % $3 = $4)";

const NEW_FENCES: &str = "\
-- new_fences
SELECT b.transaction_id, b.branch, b.role, b.state, b.refusal, b.account, b.amount, b.fenced_at, b.decided_at
FROM branch b
WHERE fenced_at > $1 AND fenced_at <= $2 AND ($3::int8 = 1 OR abs(hashtext(account)::int8) % $3 = $4)";

const FENCES_OF: &str = "\
-- fences_of
SELECT b.transaction_id, b.branch, b.role, b.state, b.refusal, b.account, b.amount, b.fenced_at, b.decided_at
FROM unnest($1::uuid[], $2::int2[]) AS i (id, branch)
JOIN branch b ON b.transaction_id = i.id AND b.branch = i.branch";

/// The posting before the first one of each account in the slice; and whatever else has a version that belongs to the slice.
const AROUND: &str = "\
-- postings_around
SELECT p.account, p.version, p.available_after, p.held_after, p.recorded_at
FROM unnest($1::text[], $2::int8[], $3::int8[]) AS i (account, first, last)
JOIN posting p ON p.account = i.account AND p.version BETWEEN i.first - 1 AND i.last
WHERE (p.recorded_at <= $4 OR p.recorded_at > $5) AND p.recorded_at > $6";

/// Postings of some branches that were recorded later, because the clock had been set back.
const LATER: &str = "\
-- later_postings
SELECT p.transaction_id, p.branch, p.kind
FROM unnest($1::text[], $2::uuid[], $3::int2[]) AS i (account, id, branch)
JOIN posting p ON p.account = i.account AND p.transaction_id = i.id AND p.branch = i.branch
WHERE p.recorded_at > $4";

/// In all partitions, or in those in which an account's newest posting must be, by its row.
const ACCOUNTS: &str = "\
-- audit_accounts
SELECT i.id, a.id IS NOT NULL AS is_there, a.available, a.held, a.version,
       p.available_after, p.held_after, p.version AS posted,
       EXISTS (SELECT FROM bucket b WHERE b.bucket = (get_byte(hash, 0) * 256 + get_byte(hash, 1)) % 4096) AS is_ours
FROM unnest($1::text[]) AS i (id)
CROSS JOIN sha256(convert_to(i.id, 'UTF8')) AS hash
LEFT JOIN account a ON a.id = i.id
LEFT JOIN LATERAL (
    SELECT * FROM posting p
    WHERE p.account = i.id AND ($2::bool OR p.recorded_at >= coalesce(a.posted_at, '-infinity'))
    ORDER BY p.version DESC LIMIT 1
) AS p ON true";

/// A slice of time, by the shard's clock: after `from`, up to and with `until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Where it begins.
    pub from: Timestamp,
    /// Where it ends.
    pub until: Timestamp,
    /// Into how many parts its accounts are divided: one, unless more was recorded at one time than is read at a time.
    pub parts: i64,
    /// Which part.
    pub part: i64,
}

/// What moved in a slice.
#[derive(Debug, Clone, Default)]
pub struct Moved {
    /// How many postings were recorded in it.
    pub postings: u64,
    /// The transactions that they belong to, and those whose fences were written in it. Issues are no transactions.
    pub transactions: Vec<Uuid>,
    /// The accounts that they belong to.
    pub accounts: Vec<String>,
    /// What is wrong; at most [`LIMIT`].
    pub findings: Vec<ShardFinding>,
}

/// Which branch of which transaction.
type Key = (Uuid, i16);

/// A posting.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    account: String,
    key: Key,
    kind: PostingKind,
    amount: i64,
    left: Left,
}

/// What a posting leaves its account at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Left {
    version: i64,
    available: i64,
    held: i64,
    at: Timestamp,
}

/// A fence, as far as it says which postings there are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fence {
    role: Role,
    state: FenceState,
    account: String,
    amount: i64,
    fenced_at: Timestamp,
    decided_at: Option<Timestamp>,
}

/// Before the first posting of the shard.
pub(crate) async fn start(client: &Client) -> Result<Timestamp, String> {
    let row = client.query_one(OLDEST, &[]).await.map_err(text)?;
    let name: Option<String> = row.get(0);
    let range = name.as_deref().and_then(|name| POSTING.range(name));
    let (low, _) = range.ok_or("it has no partitions of postings that could be audited")?;
    // A slice begins after its `from`.
    Ok(low - jiff::SignedDuration::from_micros(1))
}

/// How many postings were recorded and fences written after one time, up to another.
pub(crate) async fn count(client: &mut Client, from: Timestamp, until: Timestamp) -> Result<i64, String> {
    let counted = async {
        let reading = snapshot(client).await?;
        reading.batch_execute(BY_ID).await?;
        reading.query_one(COUNT, &[&from, &until]).await
    };
    Ok(counted.await.map_err(text)?.get(0))
}

/// Audits a slice.
pub(crate) async fn moved(client: &mut Client, slice: Slice) -> Result<Moved, String> {
    let reading = snapshot(client).await.map_err(text)?;
    reading.batch_execute(BY_ID).await.map_err(text)?;
    let sheet = Sheet::read(&reading, slice).await?;
    let (mut findings, mut missing) = sheet.judge(slice.until);
    if !missing.is_empty() {
        let later = later(&reading, &missing, slice.until).await?;
        missing.retain(|missing| !later.contains(&(missing.key, missing.kind as i16)));
        findings.extend(missing.iter().map(Missing::finding));
    }
    reading.commit().await.map_err(text)?;
    findings.truncate(LIMIT as usize);
    let accounts = sheet.books().map(|book| book[0].account.clone()).collect();
    Ok(Moved { postings: sheet.lines.len() as u64, transactions: sheet.transactions(), accounts, findings })
}

/// Compares accounts with their newest postings, and with the map of buckets. There may be none of a name: it was refused.
pub(crate) async fn accounts(client: &mut Client, ids: &[String]) -> Result<Vec<ShardFinding>, String> {
    let reading = snapshot(client).await.map_err(text)?;
    reading.batch_execute(BY_ID).await.map_err(text)?;
    let rows = reading.query(ACCOUNTS, &[&ids, &false]).await.map_err(text)?;
    let is_suspect = |row: &&Row| !judge_account(row).is_empty();
    let suspects: Vec<String> = rows.iter().filter(is_suspect).map(|row| row.get("id")).collect();
    let rows = reading.query(ACCOUNTS, &[&suspects, &true]).await.map_err(text)?;
    let mut findings: Vec<ShardFinding> = rows.iter().flat_map(judge_account).collect();
    findings.truncate(LIMIT as usize);
    Ok(findings)
}

/// What is read of a slice.
struct Sheet {
    /// Its postings, by account and version.
    lines: Vec<Line>,
    /// The fences of its postings.
    fences: HashMap<Key, Fence>,
    /// The fences that were written in it.
    new_fences: BTreeMap<Key, Fence>,
    /// By account: the posting before its first one, and any other with a version that belongs to the slice.
    around: HashMap<String, Vec<Left>>,
}

/// A posting that should have been recorded in a slice.
struct Missing<'a> {
    key: Key,
    fence: &'a Fence,
    kind: PostingKind,
}

impl Sheet {
    async fn read(reading: &Transaction<'_>, slice: Slice) -> Result<Self, String> {
        let Slice { from, until, parts, part } = slice;
        let rows = reading.query(NEW_POSTINGS, &[&from, &until, &parts, &part]).await.map_err(text)?;
        let mut lines = rows.iter().map(Line::read).collect::<Result<Vec<Line>, String>>()?;
        lines.sort_by(|a, b| {
            (&a.account, a.left.version, a.left.at).cmp(&(&b.account, b.left.version, b.left.at))
        });
        let rows = reading.query(NEW_FENCES, &[&from, &until, &parts, &part]).await.map_err(text)?;
        let new_fences = rows.iter().map(Fence::read).collect::<Result<_, String>>()?;
        let mut sheet = Self { lines, fences: HashMap::new(), new_fences, around: HashMap::new() };

        let keys: BTreeSet<Key> = sheet.lines.iter().map(|line| line.key).collect();
        let ids: Vec<Uuid> = keys.iter().map(|(id, _)| *id).collect();
        let branches: Vec<i16> = keys.iter().map(|(_, branch)| *branch).collect();
        let rows = reading.query(FENCES_OF, &[&ids, &branches]).await.map_err(text)?;
        sheet.fences = rows.iter().map(Fence::read).collect::<Result<_, String>>()?;

        let mut around: HashMap<String, Vec<Left>> = HashMap::new();
        let mut wanted: Vec<&[Line]> = sheet.books().collect();
        // Mostly the one before is not a week old, and each older partition costs a look for each account.
        for since in [from - WEEK, Timestamp::UNIX_EPOCH] {
            let accounts: Vec<&str> = wanted.iter().map(|book| book[0].account.as_str()).collect();
            let first: Vec<i64> = wanted.iter().map(|book| book[0].left.version).collect();
            // If there is a gap among them, that is found without what lies beyond it.
            let last: Vec<i64> = wanted
                .iter()
                .map(|book| book[0].left.version.saturating_add(book.len() as i64 - 1))
                .collect();
            let rows = reading
                .query(AROUND, &[&accounts, &first, &last, &from, &until, &since])
                .await
                .map_err(text)?;
            accounts.iter().for_each(|account| drop(around.remove(*account)));
            for row in &rows {
                around.entry(row.get("account")).or_default().push(Left::read(row));
            }
            wanted.retain(|book| {
                let (account, first) = (&book[0].account, book[0].left.version);
                let is_before = |left: &Left| left.version == first - 1;
                first > 1 && !around.get(account).is_some_and(|around| around.iter().any(is_before))
            });
            if wanted.is_empty() {
                break;
            }
        }
        sheet.around = around;
        Ok(sheet)
    }

    /// Its postings, account by account.
    fn books(&self) -> impl Iterator<Item = &[Line]> {
        self.lines.chunk_by(|a, b| a.account == b.account)
    }

    /// What is wrong, and which postings are not in it.
    fn judge(&self, until: Timestamp) -> (Vec<ShardFinding>, Vec<Missing<'_>>) {
        let mut findings = Vec::new();
        for book in self.books() {
            let around = self.around.get(&book[0].account).map_or(&[][..], Vec::as_slice);
            judge_book(book, around, &self.fences, &mut findings);
        }
        let mut posted: HashSet<(Key, PostingKind)> = HashSet::new();
        for line in &self.lines {
            if !posted.insert((line.key, line.kind)) {
                let expected = format!("one {:?} for its fence", line.kind);
                let found = format!("another one, in version {}", line.left.version);
                findings.push(line.finding("FENCE_MISMATCH", expected, found));
            }
        }
        let mut missing = Vec::new();
        for (key, fence) in &self.new_fences {
            for (kind, time) in fence.postings() {
                match time {
                    None => {
                        let found = format!("branch {} {:?} without one", key.1, fence.state);
                        findings.push(fence.finding(*key, "the time of its decision".into(), found));
                    }
                    Some(time) if time <= until && !posted.contains(&(*key, kind)) => {
                        missing.push(Missing { key: *key, fence, kind });
                    }
                    Some(_) => {}
                }
            }
        }
        (findings, missing)
    }

    fn transactions(&self) -> Vec<Uuid> {
        let moving = self.lines.iter().map(|line| line.key).filter(|(_, branch)| *branch != ISSUE as i16);
        let fenced =
            self.new_fences.iter().filter(|(_, fence)| !fence.role.is_at_once()).map(|(key, _)| *key);
        let ids: BTreeSet<Uuid> = moving.chain(fenced).map(|(id, _)| id).collect();
        ids.into_iter().collect()
    }
}

impl Missing<'_> {
    fn finding(&self) -> ShardFinding {
        let Fence { amount, state, .. } = self.fence;
        let expected = format!("a {:?} of {amount}, since branch {} is {state:?}", self.kind, self.key.1);
        self.fence.finding(self.key, expected, "none".into())
    }
}

/// Which postings of these branches were recorded after a time.
async fn later(
    reading: &Transaction<'_>,
    missing: &[Missing<'_>],
    time: Timestamp,
) -> Result<HashSet<(Key, i16)>, String> {
    let accounts: Vec<&str> = missing.iter().map(|missing| missing.fence.account.as_str()).collect();
    let ids: Vec<Uuid> = missing.iter().map(|missing| missing.key.0).collect();
    let branches: Vec<i16> = missing.iter().map(|missing| missing.key.1).collect();
    let rows = reading.query(LATER, &[&accounts, &ids, &branches, &time]).await.map_err(text)?;
    let key = |row: &Row| (row.get("transaction_id"), row.get("branch"));
    Ok(rows.iter().map(|row| (key(row), row.get("kind"))).collect())
}

fn text(error: tokio_postgres::Error) -> String {
    error.to_string()
}

/// One account's postings of a slice, in the order of their versions, with what there is around them.
fn judge_book(
    book: &[Line],
    around: &[Left],
    fences: &HashMap<Key, Fence>,
    findings: &mut Vec<ShardFinding>,
) {
    let first = book[0].left.version;
    for twin in around.iter().filter(|left| left.version >= first) {
        let found = format!("another one, recorded at {}", twin.at);
        findings.push(book[0].finding(
            "VERSION_GAP",
            format!("one posting of version {}", twin.version),
            found,
        ));
    }
    let mut before = around.iter().find(|left| left.version == first - 1).copied();
    for line in book {
        let follows = match before {
            Some(before) => line.left.version - 1 == before.version,
            None => line.left.version == 1,
        };
        if follows {
            findings.extend(line.against_the_one_before(before));
        } else {
            let expected = format!("version {} before it", line.left.version - 1);
            let found = before.map_or("none".into(), |before| format!("version {}", before.version));
            findings.push(line.finding("VERSION_GAP", expected, found));
        }
        findings.extend(line.against_its_fence(before.map(|before| before.at), fences.get(&line.key)));
        before = Some(line.left);
    }
}

impl Line {
    fn read(row: &Row) -> Result<Self, String> {
        let kind = PostingKind::from_number(row.get("kind")).ok_or("a posting has an unknown kind")?;
        Ok(Self {
            account: row.get("account"),
            key: (row.get("transaction_id"), row.get("branch")),
            kind,
            amount: row.get("amount"),
            left: Left::read(row),
        })
    }

    /// Its balances and its time, if it has the version that follows.
    fn against_the_one_before(&self, before: Option<Left>) -> Vec<ShardFinding> {
        let mut findings = Vec::new();
        let (available, held) = before.map_or((0, 0), |before| (before.available, before.held));
        let (available_change, held_change) = self.kind.change(self.amount);
        // In i128, since what is wrong may not fit.
        let expected = [
            i128::from(available) + i128::from(available_change),
            i128::from(held) + i128::from(held_change),
        ];
        let found = [i128::from(self.left.available), i128::from(self.left.held)];
        if found != expected {
            let balances = |[available, held]: [i128; 2]| format!("available {available}, held {held}");
            findings.push(self.finding("POSTING_CHAIN", balances(expected), balances(found)));
        }
        if let Some(before) = before.filter(|before| self.left.at < before.at) {
            let expected = format!("not before {}", before.at);
            findings.push(self.finding("POSTING_TIME", expected, self.left.at.to_string()));
        }
        findings
    }

    /// Whether its fence permits it, and was committed with it.
    fn against_its_fence(&self, before: Option<Timestamp>, fence: Option<&Fence>) -> Option<ShardFinding> {
        let mismatch = |expected, found| Some(self.finding("FENCE_MISMATCH", expected, found));
        let this = || format!("{:?} of {} on {}", self.kind, self.amount, self.account);
        let Some(fence) = fence else { return mismatch("a fence that permits it".into(), this()) };
        let permitted = fence.postings().find(|(kind, _)| *kind == self.kind);
        let Some((_, time)) =
            permitted.filter(|_| (&self.account, self.amount) == (&fence.account, fence.amount))
        else {
            let kinds: Vec<PostingKind> = fence.postings().map(|(kind, _)| kind).collect();
            return mismatch(format!("postings {kinds:?} of {} on {}", fence.amount, fence.account), this());
        };
        let Some(time) = time else {
            return mismatch("a fence with the time of its decision".into(), this());
        };
        let is_stamped = match before {
            Some(before) => self.left.at == time.max(before),
            // An account may have been opened at a time that was ahead of it.
            None => self.left.at >= time,
        };
        if is_stamped {
            return None;
        }
        mismatch(format!("recorded with its fence, at {time}"), format!("{} at {}", this(), self.left.at))
    }

    fn finding(&self, kind: &'static str, expected: String, found: String) -> ShardFinding {
        let (transaction, account) = (Some(self.key.0.to_string()), Some(self.account.clone()));
        ShardFinding { kind, transaction, account, expected, found }
    }
}

impl Left {
    fn read(row: &Row) -> Self {
        Self {
            version: row.get("version"),
            available: row.get("available_after"),
            held: row.get("held_after"),
            at: row.get("recorded_at"),
        }
    }
}

impl Fence {
    fn read(row: &Row) -> Result<(Key, Self), String> {
        let fence = || {
            let refusal =
                row.get::<_, Option<&str>>("refusal").map(str::parse::<Refusal>).transpose().ok()?;
            Some(Self {
                role: role_from_number(row.get("role"))?,
                state: FenceState::from_number(row.get("state"), refusal)?,
                account: row.get("account"),
                amount: row.get("amount"),
                fenced_at: row.get("fenced_at"),
                decided_at: row.get("decided_at"),
            })
        };
        let fence = fence().ok_or("a fence has an unknown role, state or refusal")?;
        Ok(((row.get("transaction_id"), row.get("branch")), fence))
    }

    /// The postings that there are for it, each with the time that it is stamped with: of its Try, and of its decision.
    fn postings(&self) -> impl Iterator<Item = (PostingKind, Option<Timestamp>)> {
        let (tried, decided) = match (self.role, self.state) {
            (Role::Debit, FenceState::Tried) => (Some(PostingKind::Hold), None),
            (Role::Debit, FenceState::Confirmed) => (Some(PostingKind::Hold), Some(PostingKind::Settle)),
            (Role::Debit, FenceState::Cancelled) => (Some(PostingKind::Hold), Some(PostingKind::Release)),
            (Role::Credit, FenceState::Confirmed) => (None, Some(PostingKind::Pay)),
            (Role::Issue, FenceState::Confirmed) => (None, Some(PostingKind::Issue)),
            (Role::Burn, FenceState::Confirmed) => (None, Some(PostingKind::Burn)),
            _ => (None, None),
        };
        let tried = tried.map(|kind| (kind, Some(self.fenced_at)));
        tried.into_iter().chain(decided.map(|kind| (kind, self.decided_at)))
    }

    fn finding(&self, key: Key, expected: String, found: String) -> ShardFinding {
        let (transaction, account) = (Some(key.0.to_string()), Some(self.account.clone()));
        ShardFinding { kind: "FENCE_MISMATCH", transaction, account, expected, found }
    }
}

fn judge_account(row: &Row) -> Vec<ShardFinding> {
    let id: String = row.get("id");
    let is_there: bool = row.get("is_there");
    let balances = |[available, held, version]: [&str; 3]| {
        let number = |column| row.get::<_, Option<i64>>(column).unwrap_or_default();
        (number(available), number(held), number(version))
    };
    let says = |(available, held, version): (i64, i64, i64)| {
        format!("available {available}, held {held}, version {version}")
    };
    let finding = |kind, expected, found| ShardFinding {
        kind,
        transaction: None,
        account: Some(id.clone()),
        expected,
        found,
    };
    let mut findings = Vec::new();
    let posted = balances(["available_after", "held_after", "posted"]);
    let stated = balances(["available", "held", "version"]);
    if !is_there && posted != (0, 0, 0) {
        findings.push(finding("BALANCE_MISMATCH", says(posted), "no account".into()));
    } else if posted != stated {
        findings.push(finding("BALANCE_MISMATCH", says(posted), says(stated)));
    }
    if is_there && !row.get::<_, bool>("is_ours") {
        findings.push(finding("WRONG_SHARD", "a bucket of this shard".into(), "another one".into()));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = (Uuid::nil(), 0);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn left(version: i64, available: i64, held: i64, second: i64) -> Left {
        Left { version, available, held, at: at(second) }
    }

    fn line(kind: PostingKind, left: Left) -> Line {
        Line { account: "alice".into(), key: KEY, kind, amount: 10, left }
    }

    /// A debit of 10 that was tried in second 5, and decided in second 9 if it is.
    fn debit(state: FenceState) -> Fence {
        let decided_at = state.is_final().then(|| at(9));
        Fence { role: Role::Debit, state, account: "alice".into(), amount: 10, fenced_at: at(5), decided_at }
    }

    /// What is found among these postings in a slice up to second 20, after one that left 100 in second 1; and what is missing.
    fn judged(lines: Vec<Line>, fence: Fence, around: Vec<Left>) -> (Vec<&'static str>, Vec<PostingKind>) {
        let sheet = Sheet {
            lines,
            fences: [(KEY, fence.clone())].into(),
            new_fences: [(KEY, fence)].into(),
            around: [("alice".to_owned(), around)].into(),
        };
        let (findings, missing) = sheet.judge(at(20));
        (
            findings.iter().map(|finding| finding.kind).collect(),
            missing.iter().map(|missing| missing.kind).collect(),
        )
    }

    fn before() -> Vec<Left> {
        vec![left(1, 100, 0, 1)]
    }

    fn hold() -> Line {
        line(PostingKind::Hold, left(2, 90, 10, 5))
    }

    #[test]
    fn what_a_shard_writes_is_no_finding() {
        let settle = line(PostingKind::Settle, left(3, 90, 0, 9));
        let release = line(PostingKind::Release, left(3, 100, 0, 9));

        for (lines, state) in [
            (vec![hold()], FenceState::Tried),
            (vec![hold(), settle], FenceState::Confirmed),
            (vec![hold(), release], FenceState::Cancelled),
            (vec![], FenceState::Refused(Refusal::AccountBlocked)),
            (vec![], FenceState::Stopped),
        ] {
            assert_eq!(judged(lines, debit(state), before()), (vec![], vec![]), "{state:?}");
        }
    }

    #[test]
    fn what_does_not_follow_from_the_posting_before_it_is_found() {
        let cases = [
            (left(2, 91, 10, 5), before(), "POSTING_CHAIN"),
            (left(2, 90, 11, 5), before(), "POSTING_CHAIN"),
            (left(2, 90, 10, 5), vec![left(1, 100, 0, 6)], "POSTING_TIME"),
            (left(3, 90, 10, 5), before(), "VERSION_GAP"),
            (left(2, 90, 10, 5), vec![], "VERSION_GAP"),
            (left(2, 90, 10, 5), vec![left(1, 100, 0, 1), left(2, 90, 10, 30)], "VERSION_GAP"),
        ];
        for (left, around, expected) in cases {
            let (found, _) = judged(vec![line(PostingKind::Hold, left)], debit(FenceState::Tried), around);

            assert!(found.contains(&expected), "{left:?}: {found:?}");
        }
    }

    #[test]
    fn a_posting_that_its_fence_does_not_permit_is_found() {
        let second = line(PostingKind::Settle, left(4, 90, 0, 12));
        let settle = line(PostingKind::Settle, left(3, 90, 0, 9));
        let other_amount = Line { amount: 9, left: left(2, 91, 9, 5), ..hold() };
        for (lines, state) in [
            (vec![hold(), settle.clone()], FenceState::Tried),
            (vec![hold(), settle.clone()], FenceState::Cancelled),
            (vec![hold()], FenceState::Stopped),
            (vec![hold(), settle, second], FenceState::Confirmed),
            (vec![other_amount], FenceState::Tried),
        ] {
            let (found, _) = judged(lines, debit(state), before());

            assert!(found.contains(&"FENCE_MISMATCH"), "{state:?}: {found:?}");
        }
    }

    #[test]
    fn a_second_settlement_in_a_later_slice_shows_by_its_time() {
        let mut fence = debit(FenceState::Confirmed);
        fence.fenced_at = at(-100);
        let second = line(PostingKind::Settle, left(4, 90, 0, 12));
        let sheet = Sheet {
            lines: vec![second],
            fences: [(KEY, fence)].into(),
            new_fences: BTreeMap::new(),
            around: [("alice".to_owned(), vec![left(3, 90, 10, 9)])].into(),
        };

        let (findings, _) = sheet.judge(at(20));

        assert_eq!(findings[0].expected, "recorded with its fence, at 1970-01-01T00:00:09Z");
        assert_eq!(findings.len(), 1, "{findings:?}");
    }

    #[test]
    fn a_clock_that_was_set_back_is_no_finding() {
        let ahead = vec![left(1, 100, 0, 15)];
        let late = line(PostingKind::Hold, left(2, 90, 10, 15));

        assert_eq!(judged(vec![late], debit(FenceState::Tried), ahead), (vec![], vec![]));
    }

    #[test]
    fn a_fence_without_its_postings_is_found() {
        let undated = Fence { decided_at: None, ..debit(FenceState::Cancelled) };

        assert_eq!(judged(vec![], debit(FenceState::Tried), vec![]).1, [PostingKind::Hold]);
        let (_, missing) = judged(vec![hold()], debit(FenceState::Cancelled), before());
        assert_eq!(missing, [PostingKind::Release]);
        assert_eq!(judged(vec![hold()], undated, before()).0, ["FENCE_MISMATCH"]);
    }
}
