//! `tccctl payout …`: what a payout participant has asked its provider for, and whether the provider says the same.
//!
//! The participant is asked itself, and not through a coordinator. Comparing is a function of two lists, so that it can be
//! tested without either of them.

use crate::{
    errors::{Exit, Failure},
    output::{Int64, Output, fields, name, or_dash, rows, time},
    session::Session,
};
use clap::Args;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};
use tcc_proto::v1::{
    self, PayoutState, payout_service_client::PayoutServiceClient, settle_payout_request::Found,
};
use tonic::transport::Channel;
use uuid::Uuid;

/// Which payouts are listed.
#[derive(Args)]
pub struct Listed {
    /// Only those reserved then or later
    #[arg(long, value_name = "TIME", value_parser = crate::args::moment)]
    from: Option<prost_types::Timestamp>,
    /// Only those reserved before then
    #[arg(long, value_name = "TIME", value_parser = crate::args::moment)]
    until: Option<prost_types::Timestamp>,
    /// Only those that are in line or asked for
    #[arg(long)]
    open: bool,
}

/// What a person has found out.
#[derive(Args)]
pub struct Settled {
    /// The transaction
    #[arg(value_parser = crate::args::transaction_id)]
    id: Uuid,
    /// Which of its branches
    #[arg(long, value_name = "N", default_value_t = 0)]
    branch: u32,
    /// It is paid: the provider's reference
    #[arg(long, value_name = "REFERENCE", required_unless_present = "never")]
    paid: Option<String>,
    /// It is not paid and never will be, which you know for certain: the reason, such as ACCOUNT_CLOSED. The payer gets the
    /// money back
    #[arg(long, value_name = "CODE", conflicts_with = "paid")]
    never: Option<String>,
    /// How it was found out: it is recorded
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// A provider's statement, and how to read it.
#[derive(Args)]
pub struct Statement {
    /// The statement: comma-separated values with a header
    file: PathBuf,
    /// The column with the idempotency key that the provider was sent
    #[arg(long, value_name = "COLUMN", default_value = "key")]
    key_column: String,
    /// The column with the amount
    #[arg(long, value_name = "COLUMN", default_value = "amount")]
    amount_column: String,
    /// The column with the currency
    #[arg(long, value_name = "COLUMN", default_value = "currency")]
    currency_column: String,
    /// The column with the provider's reference, if there is one
    #[arg(long, value_name = "COLUMN", default_value = "id")]
    reference_column: String,
    /// A column that says what a line is, and what it says of one that is paid: COLUMN=VALUE. Other lines are passed over
    #[arg(long, value_name = "COLUMN=VALUE")]
    paid_if: Option<String>,
    /// How many digits of an amount stand behind its point
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=9))]
    decimals: u32,
    /// Compare only payouts that were reserved then or later
    #[arg(long, value_name = "TIME", value_parser = crate::args::moment)]
    from: Option<prost_types::Timestamp>,
    /// Compare only payouts that were reserved before then
    #[arg(long, value_name = "TIME", value_parser = crate::args::moment)]
    until: Option<prost_types::Timestamp>,
}

async fn connect(session: &Session) -> Result<PayoutServiceClient<Channel>, Box<Failure>> {
    Ok(PayoutServiceClient::new(session.connect().await?))
}

async fn listed(session: &Session, request: v1::ListPayoutsRequest) -> Result<Vec<v1::Payout>, Box<Failure>> {
    let failed = |status| session.failure(status);
    let request = session.unhurried_request(request);
    let mut stream = connect(session).await?.list_payouts(request).await.map_err(failed)?.into_inner();
    let mut payouts = Vec::new();
    while let Some(message) = stream.message().await.map_err(failed)? {
        payouts.extend(message.payout);
    }
    Ok(payouts)
}

/// Shows how long the line is, and whether the provider answers.
pub async fn status(session: &Session, output: &Output) -> Result<Exit, Box<Failure>> {
    let request = session.request(v1::GetPayoutStatusRequest {});
    let status = connect(session).await?.get_payout_status(request).await;
    let status = status.map_err(|status| session.failure(status))?.into_inner();
    output.show(&Line {
        in_line: Int64(status.in_line),
        asked: Int64(status.asked),
        oldest_due_at: status.oldest_due_at.as_ref().map(time),
        held_up: Some(status.held_up).filter(|why| !why.is_empty()),
    })?;
    Ok(Exit::Done)
}

/// Lists payouts.
pub async fn list(session: &Session, output: &Output, which: Listed) -> Result<Exit, Box<Failure>> {
    let Listed { from, until, open } = which;
    let request = v1::ListPayoutsRequest { from, until, ..Default::default() };
    let mut payouts = listed(session, request).await?;
    payouts.retain(|payout| !open || matches!(payout.state(), PayoutState::InLine | PayoutState::Asked));
    output.show_list(&Payouts { payouts: payouts.iter().map(Payout::from).collect() }, "payouts")?;
    Ok(Exit::Done)
}

/// Writes down what a person has found out.
pub async fn settle(session: &Session, output: &Output, settled: Settled) -> Result<Exit, Box<Failure>> {
    let Settled { id, branch, paid, never, reason } = settled;
    let found = paid.map(Found::Paid).or(never.map(Found::Never));
    let transaction_id = id.to_string();
    let request = session.request(v1::SettlePayoutRequest { transaction_id, branch, found, reason });
    let response = connect(session).await?.settle_payout(request).await;
    let response = response.map_err(|status| session.failure(status))?.into_inner();
    let payout = response.payout.ok_or_else(|| Failure::incomplete("payout"))?;
    output.show(&Payouts { payouts: vec![Payout::from(&payout)] })?;
    Ok(Exit::Done)
}

/// Compares a provider's statement with what is believed here.
pub async fn reconcile(
    session: &Session,
    output: &Output,
    statement: Statement,
) -> Result<Exit, Box<Failure>> {
    let text = std::fs::read_to_string(&statement.file)
        .map_err(|error| Failure::usage(&format!("{}: {error}", statement.file.display())))?;
    let theirs = read(&text, &statement)
        .map_err(|what| Failure::usage(&format!("{}: {what}", statement.file.display())))?;
    let request =
        v1::ListPayoutsRequest { from: statement.from, until: statement.until, ..Default::default() };
    // What is paid between the statement and the list is not in the statement: it is told as missing, and found the next time.
    let ours = listed(session, request).await?;
    let is_part = statement.from.is_some() || statement.until.is_some();
    let compared = compare(&ours, &theirs, is_part);
    let exit = if compared.differences.is_empty() { Exit::Done } else { Exit::Findings };
    output.show_list(&compared, "differences")?;
    Ok(exit)
}

/// A line of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    key: String,
    amount: i64,
    currency: String,
    reference: String,
}

fn read(text: &str, how: &Statement) -> Result<Vec<Entry>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| error.to_string())?.clone();
    let find = |column: &str| header.iter().position(|name| name == column);
    let column = |name: &str| {
        find(name).ok_or_else(|| {
            format!("it has no column {name:?}; there is {:?}", header.iter().collect::<Vec<_>>())
        })
    };
    let (key, amount) = (column(&how.key_column)?, column(&how.amount_column)?);
    let (currency, reference) = (column(&how.currency_column)?, find(&how.reference_column));
    let paid_if = match &how.paid_if {
        None => None,
        Some(text) => {
            let (name, value) = text.split_once('=').ok_or("write --paid-if as COLUMN=VALUE")?;
            Some((column(name)?, value))
        }
    };
    let mut entries = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| error.to_string())?;
        if paid_if.is_some_and(|(column, value)| &record[column] != value) {
            continue;
        }
        let line = record.position().map_or(0, csv::Position::line);
        let amount = minor_units(&record[amount], how.decimals).ok_or_else(|| {
            format!("line {line}: {:?} is no amount with {} decimals", &record[amount], how.decimals)
        })?;
        entries.push(Entry {
            key: record[key].to_owned(),
            amount,
            currency: record[currency].to_owned(),
            reference: reference.map(|at| record[at].to_owned()).unwrap_or_default(),
        });
    }
    Ok(entries)
}

/// `12.3` with two decimals is 1230. Nothing is rounded.
fn minor_units(text: &str, decimals: u32) -> Option<i64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let padded = format!("{part:0<width$}", width = decimals as usize);
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(part) {
        return None;
    }
    let (kept, rest) = padded.split_at(decimals as usize);
    if rest.bytes().any(|byte| byte != b'0') {
        return None;
    }
    format!("{whole}{kept}").parse().ok()
}

/// What two books do not agree on.
fn compare(ours: &[v1::Payout], theirs: &[Entry], is_part: bool) -> Compared {
    let by_key: BTreeMap<&str, &v1::Payout> =
        ours.iter().map(|payout| (payout.key.as_str(), payout)).collect();
    let mut seen = BTreeSet::new();
    let mut compared = Compared::default();
    for entry in theirs {
        let is_new = seen.insert(entry.key.as_str());
        let ours = by_key.get(entry.key.as_str()).copied();
        // What was reserved at another time is not compared.
        if is_part && ours.is_none() && of_key(&entry.key).is_some() {
            compared.passed_over += 1;
            continue;
        }
        match difference(ours, entry, is_new) {
            Some((kind, what, command)) => {
                compared.differences.push(Difference::new(
                    kind,
                    &entry.key,
                    ours,
                    Some(entry),
                    what,
                    command,
                ));
            }
            None => compared.agreed += 1,
        }
    }
    for payout in ours.iter().filter(|payout| !seen.contains(payout.key.as_str())) {
        match payout.state() {
            PayoutState::Paid => {
                let what = "believed to be paid, and not in the statement".to_owned();
                let command = format!("tccctl holds describe {}", payout.transaction_id);
                compared.differences.push(Difference::new(
                    "MISSING",
                    &payout.key,
                    Some(payout),
                    None,
                    what,
                    command,
                ));
            }
            PayoutState::InLine | PayoutState::Asked => compared.open += 1,
            _ => {}
        }
    }
    compared
}

/// What is the matter with an entry, and what to run.
fn difference(
    ours: Option<&v1::Payout>,
    entry: &Entry,
    is_new: bool,
) -> Option<(&'static str, String, String)> {
    let Some(ours) = ours else {
        let command = match of_key(&entry.key) {
            Some((id, _)) => format!("tccctl holds describe {id}"),
            None => format!("tccctl payout list | grep -F -- {}", quoted(&entry.key)),
        };
        return Some(("EXTRA", "paid, and not known here".to_owned(), command));
    };
    let describe = format!("tccctl holds describe {}", ours.transaction_id);
    if !is_new {
        return Some(("PAID_TWICE", "a second time in the statement".to_owned(), describe));
    }
    if entry.amount != ours.amount || entry.currency != ours.currency {
        let what =
            format!("paid {} {}, and not {} {}", entry.amount, entry.currency, ours.amount, ours.currency);
        return Some(("AMOUNT", what, describe));
    }
    match ours.state() {
        PayoutState::Paid => None,
        PayoutState::Asked => {
            let reference = if entry.reference.is_empty() { &entry.key } else { &entry.reference };
            let command = format!(
                "tccctl payout settle {} --branch {} --reason 'in the statement' --paid {}",
                ours.transaction_id,
                ours.branch,
                quoted(reference)
            );
            Some(("EXTRA", "paid, and not known here yet".to_owned(), command))
        }
        state => {
            let what =
                format!("paid, and {} here", name(state.into(), "PAYOUT_STATE_", PayoutState::as_str_name));
            Some(("EXTRA", what, describe))
        }
    }
}

/// The transaction and the branch in a key.
fn of_key(key: &str) -> Option<(Uuid, u32)> {
    let (id, branch) = key.strip_suffix("-confirm")?.rsplit_once('-')?;
    Some((Uuid::try_parse(id).ok()?, branch.parse().ok()?))
}

/// For a shell: a statement is somebody else's text.
fn quoted(text: &str) -> String {
    let is_plain = !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
        && !text.starts_with('-');
    if is_plain { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[derive(Serialize)]
struct Line {
    in_line: Int64,
    asked: Int64,
    oldest_due_at: Option<String>,
    held_up: Option<String>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&fields([
            ("in line", self.in_line.to_string()),
            ("asked for, not known yet", self.asked.to_string()),
            ("the first was due at", or_dash(self.oldest_due_at.as_deref())),
            ("held up", or_dash(self.held_up.as_deref())),
        ]))
    }
}

#[derive(Serialize)]
struct Payouts {
    payouts: Vec<Payout>,
}

#[derive(Serialize)]
struct Payout {
    transaction_id: String,
    branch: String,
    key: String,
    recipient: String,
    amount: Int64,
    currency: String,
    state: String,
    reference: Option<String>,
    remark: Option<String>,
    settled_by: Option<String>,
    due_at: Option<String>,
    asked_at: Option<String>,
    ended_at: Option<String>,
}

impl From<&v1::Payout> for Payout {
    fn from(payout: &v1::Payout) -> Self {
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        Self {
            transaction_id: payout.transaction_id.clone(),
            branch: payout.branch.to_string(),
            key: payout.key.clone(),
            recipient: payout.recipient.clone(),
            amount: Int64(payout.amount),
            currency: payout.currency.clone(),
            state: name(payout.state, "PAYOUT_STATE_", PayoutState::as_str_name),
            reference: text(&payout.reference),
            remark: text(&payout.remark),
            settled_by: text(&payout.settled_by),
            due_at: payout.due_at.as_ref().map(time),
            asked_at: payout.asked_at.as_ref().map(time),
            ended_at: payout.ended_at.as_ref().map(time),
        }
    }
}

impl fmt::Display for Payouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |payout: &Payout| {
            [
                payout.transaction_id.clone(),
                payout.recipient.clone(),
                payout.amount.to_string(),
                payout.currency.clone(),
                payout.state.clone(),
                or_dash(payout.reference.as_deref()),
                or_dash(payout.settled_by.as_deref().or(payout.remark.as_deref())),
            ]
        };
        let header = ["TRANSACTION", "RECIPIENT", ">AMOUNT", "CURRENCY", "STATE", "REFERENCE", "REMARK"];
        f.write_str(&rows(header, self.payouts.iter().map(line)))
    }
}

#[derive(Debug, Default, Serialize)]
struct Compared {
    /// So many lines say the same.
    agreed: u64,
    /// So many payouts are not known yet.
    open: u64,
    /// So many lines are of payouts of another time.
    passed_over: u64,
    differences: Vec<Difference>,
}

#[derive(Debug, Serialize)]
struct Difference {
    kind: &'static str,
    key: String,
    transaction_id: Option<String>,
    ours: Option<Int64>,
    theirs: Option<Int64>,
    what: String,
    /// What to run.
    command: String,
}

impl Difference {
    fn new(
        kind: &'static str,
        key: &str,
        ours: Option<&v1::Payout>,
        theirs: Option<&Entry>,
        what: String,
        command: String,
    ) -> Self {
        let id = ours.map(|ours| ours.transaction_id.clone());
        Self {
            kind,
            key: key.to_owned(),
            transaction_id: id.or_else(|| of_key(key).map(|(id, _)| id.to_string())),
            ours: ours.map(|ours| Int64(ours.amount)),
            theirs: theirs.map(|theirs| Int64(theirs.amount)),
            what,
            command,
        }
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.differences.is_empty() {
            let amount = |amount: Option<Int64>| or_dash(amount.map(|amount| amount.to_string()).as_deref());
            let line = |one: &Difference| {
                let Difference { kind, key, ours, theirs, what, command, .. } = one;
                [
                    (*kind).to_owned(),
                    key.clone(),
                    amount(*ours),
                    amount(*theirs),
                    what.clone(),
                    command.clone(),
                ]
            };
            let header = ["KIND", "KEY", ">OURS", ">THEIRS", "WHAT", "RUN"];
            writeln!(f, "{}", rows(header, self.differences.iter().map(line)))?;
        }
        let Self { agreed, open, passed_over, differences } = self;
        write!(f, "differences={} agreed={agreed} open={open} passed_over={passed_over}", differences.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d";

    fn payout(state: PayoutState) -> v1::Payout {
        v1::Payout {
            transaction_id: ID.into(),
            branch: 2,
            key: format!("{ID}-2-confirm"),
            amount: 250,
            currency: "GOLD".into(),
            state: state.into(),
            ..Default::default()
        }
    }

    fn entry(key: &str, amount: i64) -> Entry {
        Entry { key: key.into(), amount, currency: "GOLD".into(), reference: "po_1".into() }
    }

    fn found(ours: &[v1::Payout], theirs: &[Entry]) -> Vec<(&'static str, String)> {
        compare(ours, theirs, false).differences.into_iter().map(|one| (one.kind, one.command)).collect()
    }

    #[test]
    fn what_both_say_is_no_difference() {
        let ours = payout(PayoutState::Paid);

        let compared = compare(std::slice::from_ref(&ours), &[entry(&ours.key, 250)], false);

        assert!(compared.differences.is_empty() && compared.agreed == 1, "{compared:?}");
        assert!(found(&[payout(PayoutState::Vetoed), payout(PayoutState::Asked)], &[]).is_empty());
    }

    #[test]
    fn each_kind_of_difference_comes_with_what_to_run() {
        let key = payout(PayoutState::Paid).key;
        let describe = format!("tccctl holds describe {ID}");

        assert_eq!(found(&[payout(PayoutState::Paid)], &[]), [("MISSING", describe.clone())]);
        assert_eq!(found(&[payout(PayoutState::Paid)], &[entry(&key, 251)]), [("AMOUNT", describe.clone())]);
        assert_eq!(found(&[payout(PayoutState::Vetoed)], &[entry(&key, 250)]), [("EXTRA", describe.clone())]);
        assert_eq!(found(&[], &[entry(&key, 250)]), [("EXTRA", describe.clone())]);
        assert_eq!(
            found(&[payout(PayoutState::Paid)], &[entry(&key, 250), entry(&key, 250)]),
            [("PAID_TWICE", describe)]
        );
        assert_eq!(
            found(&[payout(PayoutState::Asked)], &[entry(&key, 250)]),
            [(
                "EXTRA",
                format!("tccctl payout settle {ID} --branch 2 --reason 'in the statement' --paid po_1")
            )]
        );
    }

    #[test]
    fn what_a_statement_says_cannot_become_a_command() {
        let evil = Entry { reference: "x; rm -rf ~ '".into(), ..entry(&payout(PayoutState::Asked).key, 250) };

        let commands = found(&[payout(PayoutState::Asked)], &[evil]);

        assert!(commands[0].1.ends_with(r"--paid 'x; rm -rf ~ '\'''"), "{commands:?}");
        assert_eq!(found(&[], &[entry("$(id)", 1)])[0].1, "tccctl payout list | grep -F -- '$(id)'");
    }

    #[test]
    fn amounts_are_read_to_the_unit_or_not_at_all() {
        for (text, decimals, units) in [
            ("12.34", 2, Some(1_234)),
            ("12.3", 2, Some(1_230)),
            ("12", 2, Some(1_200)),
            ("12.340", 2, Some(1_234)),
            ("250", 0, Some(250)),
            ("12.345", 2, None),
            ("1,234", 0, None),
            ("-5", 0, None),
            ("", 0, None),
            ("99999999999999999999", 0, None),
        ] {
            assert_eq!(minor_units(text, decimals), units, "{text:?}");
        }
    }
}
