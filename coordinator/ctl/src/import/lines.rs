//! The lines of a file: each is a hold that is asked for, or wrong for a reason.
//!
//! A line is a line of the file, so one that is damaged takes no others with it, and none is longer than [`LONGEST`] in memory.
//! No field of a hold may contain a line break. A blank line is skipped. Columns and fields have the names of the API's; those
//! of a file of rejects are skipped, so that it can be mended and imported itself.

use super::Format;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashMap,
    io::{self, BufRead},
};
use tcc_proto::{
    Reason,
    v1::{self, OnMaturity},
};

/// More bytes are no line of a hold.
const LONGEST: usize = 64 * 1024;
/// What a file of rejects has beside the lines.
pub const ADDED: [&str; 3] = ["line", "reason", "message"];
/// The columns that a file must have.
const REQUIRED: [&str; 5] = ["payer", "payee", "amount", "currency", "due_at"];

/// A line.
#[derive(Debug, Clone)]
pub struct Line {
    /// Counted from 1, blank ones and the header too.
    pub number: u64,
    /// As it stands in the file.
    pub text: String,
    /// What it asks for.
    pub hold: Result<v1::CreateHoldRequest, Wrong>,
}

/// Why a line is no hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Of the registry.
    pub reason: String,
    /// For people.
    pub message: String,
}

fn wrong(reason: Reason, message: impl Into<String>) -> Wrong {
    Wrong { reason: reason.name().to_owned(), message: message.into() }
}

/// Reads lines one after the other.
pub struct Lines<R> {
    input: R,
    kind: Kind,
    header: Option<String>,
    on_maturity: OnMaturity,
    /// Of keys of lines that have none.
    prefix: String,
    number: u64,
    offset: u64,
    buffer: Vec<u8>,
}

enum Kind {
    Csv(Vec<Column>),
    Jsonl,
}

/// What a column of a CSV file is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Column {
    Payer,
    Payee,
    Amount,
    Currency,
    DueAt,
    OnMaturity,
    Key,
    Id,
    Label(String),
    Skipped,
}

impl<R: BufRead> Lines<R> {
    /// Reads the header, if there is one.
    ///
    /// # Errors
    ///
    /// [`Wrong`], if it has not the columns of holds: then nothing in the file can be read.
    pub fn begin(input: R, format: Format, on_maturity: OnMaturity, name: &str) -> Result<Self, Wrong> {
        let prefix: String = Sha256::digest(name).iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        let mut lines = Self {
            input,
            kind: Kind::Jsonl,
            header: None,
            on_maturity,
            prefix: format!("import-{prefix}"),
            number: 0,
            offset: 0,
            buffer: Vec::new(),
        };
        if format == Format::Csv {
            let header = lines.text().map_err(|error| wrong(Reason::MessageMalformed, error.to_string()))?;
            let header = header.and_then(Result::ok).unwrap_or_default();
            lines.kind = Kind::Csv(columns(&split(&header), on_maturity)?);
            lines.header = Some(header);
        }
        Ok(lines)
    }

    /// The header, if there is one.
    pub fn header(&self) -> Option<&str> {
        self.header.as_deref()
    }

    /// How many bytes were read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next line that is not blank; nothing at the end.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn next(&mut self) -> io::Result<Option<Line>> {
        let Some(text) = self.text()? else { return Ok(None) };
        let (text, hold) = match text {
            Ok(text) => {
                let hold = match &self.kind {
                    Kind::Csv(columns) => of_csv(columns, &split(&text)),
                    Kind::Jsonl => of_json(&text),
                };
                (text, hold.and_then(|hold| self.complete(hold)))
            }
            Err(unreadable) => unreadable,
        };
        Ok(Some(Line { number: self.number, text, hold }))
    }

    /// What a line leaves to the whole file.
    fn complete(&self, mut hold: v1::CreateHoldRequest) -> Result<v1::CreateHoldRequest, Wrong> {
        if hold.id.is_empty() && hold.idempotency_key.is_empty() {
            hold.idempotency_key = format!("{}-{}", self.prefix, self.number);
        }
        if hold.on_maturity() == OnMaturity::Unspecified {
            if self.on_maturity == OnMaturity::Unspecified {
                return Err(wrong(
                    Reason::FieldRequired,
                    "on_maturity: is required; --on-maturity says it for all lines",
                ));
            }
            hold.set_on_maturity(self.on_maturity);
        }
        Ok(hold)
    }

    /// The next line that is not blank, without its end; what is no text is told with as much of it as can be shown.
    #[expect(clippy::type_complexity, reason = "an unreadable line is a line, too")]
    fn text(&mut self) -> io::Result<Option<Result<String, (String, Result<v1::CreateHoldRequest, Wrong>)>>> {
        loop {
            self.buffer.clear();
            let is_too_long = match self.fill()? {
                None => return Ok(None),
                Some(is_too_long) => is_too_long,
            };
            self.number += 1;
            let bytes = if self.number == 1 { self.buffer.strip_prefix(b"\xef\xbb\xbf") } else { None };
            let bytes = bytes.unwrap_or(&self.buffer).trim_ascii();
            if bytes.is_empty() {
                continue;
            }
            let unreadable = |what: &str| {
                let text: String = String::from_utf8_lossy(bytes).chars().take(200).collect();
                Ok(Some(Err((text, Err(wrong(Reason::MessageMalformed, what))))))
            };
            return match std::str::from_utf8(bytes) {
                _ if is_too_long => unreadable("the line is longer than 64 KiB"),
                Ok(text) => Ok(Some(Ok(text.to_owned()))),
                Err(_) => unreadable("the line is not UTF-8"),
            };
        }
    }

    /// Reads to the end of the line. Whether it was too long to be kept; nothing at the end of the file.
    fn fill(&mut self) -> io::Result<Option<bool>> {
        let (mut any, mut is_too_long) = (false, false);
        loop {
            let available = match self.input.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                return Ok(any.then_some(is_too_long));
            }
            any = true;
            let end = available.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(available.len(), |end| end + 1);
            let room = LONGEST - self.buffer.len();
            self.buffer.extend_from_slice(&available[..taken.min(room)]);
            is_too_long |= taken > room;
            self.input.consume(taken);
            self.offset += taken as u64;
            if end.is_some() {
                return Ok(Some(is_too_long));
            }
        }
    }
}

/// The fields of a line of CSV.
fn split(text: &str) -> Vec<String> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .buffer_capacity(text.len().max(1))
        .from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    match reader.read_record(&mut record) {
        Ok(true) => record.iter().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// What each column is.
fn columns(header: &[String], on_maturity: OnMaturity) -> Result<Vec<Column>, Wrong> {
    let mut columns = Vec::new();
    for name in header {
        let column = match name.to_lowercase().as_str() {
            "payer" => Column::Payer,
            "payee" => Column::Payee,
            "amount" => Column::Amount,
            "currency" => Column::Currency,
            "due_at" => Column::DueAt,
            "on_maturity" => Column::OnMaturity,
            "key" | "idempotency_key" => Column::Key,
            "id" => Column::Id,
            added if ADDED.contains(&added) => Column::Skipped,
            other => match name.strip_prefix("label.").or_else(|| name.strip_prefix("labels.")) {
                Some(label) if !label.is_empty() => Column::Label(label.to_owned()),
                _ => {
                    let message = format!(
                        "{other:?} is no column of a hold; they are {}, on_maturity, key, id and label.NAME, as in label.{other}",
                        REQUIRED.join(", ")
                    );
                    return Err(wrong(Reason::FieldUnknown, message));
                }
            },
        };
        if column != Column::Skipped && columns.contains(&column) {
            return Err(wrong(Reason::FieldInvalid, format!("there are two columns {name:?}")));
        }
        columns.push(column);
    }
    let needed = [Column::Payer, Column::Payee, Column::Amount, Column::Currency, Column::DueAt];
    for (column, name) in needed.iter().zip(REQUIRED) {
        if !columns.contains(column) {
            let message = format!("the first line names the columns, and {name} is not among them");
            return Err(wrong(Reason::FieldRequired, message));
        }
    }
    if on_maturity == OnMaturity::Unspecified && !columns.contains(&Column::OnMaturity) {
        let message = "there is no column on_maturity; --on-maturity says it for all lines";
        return Err(wrong(Reason::FieldRequired, message));
    }
    Ok(columns)
}

fn of_csv(columns: &[Column], cells: &[String]) -> Result<v1::CreateHoldRequest, Wrong> {
    if cells.len() != columns.len() {
        let message = format!("the line has {} fields, and the header {}", cells.len(), columns.len());
        return Err(wrong(Reason::MessageMalformed, message));
    }
    let mut hold = v1::CreateHoldRequest::default();
    let mut amount = v1::Amount::default();
    for (column, cell) in columns.iter().zip(cells) {
        match column {
            Column::Payer => hold.payer = cell.clone(),
            Column::Payee => hold.payee = cell.clone(),
            Column::Amount => amount.value = whole(cell)?,
            Column::Currency => amount.currency = cell.clone(),
            Column::DueAt => hold.due_at = Some(time(cell)?),
            Column::OnMaturity => hold.set_on_maturity(maturity(cell)?),
            Column::Key => hold.idempotency_key = cell.clone(),
            Column::Id => hold.id = cell.clone(),
            // An empty cell is a label that this line has not.
            Column::Label(name) if !cell.is_empty() => {
                hold.labels.insert(name.clone(), cell.clone());
            }
            Column::Label(_) | Column::Skipped => {}
        }
    }
    hold.amount = Some(amount);
    Ok(hold)
}

/// A line of JSON Lines. Names are the proto's, in snake_case or as JSON has them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    #[serde(default)]
    id: String,
    #[serde(default, alias = "key", alias = "idempotencyKey")]
    idempotency_key: String,
    payer: String,
    payee: String,
    amount: Units,
    /// Beside an amount that is a number only.
    #[serde(default)]
    currency: String,
    #[serde(alias = "dueAt")]
    due_at: String,
    #[serde(default, alias = "onMaturity")]
    on_maturity: String,
    #[serde(default)]
    labels: HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Units {
    Amount { value: Number, currency: String },
    Number(Number),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Text(String),
    Whole(i64),
}

impl Number {
    fn value(self) -> Result<i64, Wrong> {
        match self {
            Self::Text(text) => whole(&text),
            Self::Whole(value) => Ok(value),
        }
    }
}

fn of_json(text: &str) -> Result<v1::CreateHoldRequest, Wrong> {
    let malformed = |error: serde_json::Error| wrong(Reason::MessageMalformed, error.to_string());
    let mut fields: Map<String, Value> = serde_json::from_str(text).map_err(malformed)?;
    ADDED.iter().for_each(|name| drop(fields.remove(*name)));
    let object: Object = serde_json::from_value(Value::Object(fields)).map_err(malformed)?;
    let amount = match object.amount {
        Units::Amount { value, currency } => v1::Amount { value: value.value()?, currency },
        Units::Number(value) => v1::Amount { value: value.value()?, currency: object.currency },
    };
    let mut hold = v1::CreateHoldRequest {
        id: object.id,
        payer: object.payer,
        payee: object.payee,
        amount: Some(amount),
        due_at: Some(time(&object.due_at)?),
        idempotency_key: object.idempotency_key,
        labels: object.labels,
        ..Default::default()
    };
    hold.set_on_maturity(maturity(&object.on_maturity)?);
    Ok(hold)
}

fn whole(text: &str) -> Result<i64, Wrong> {
    let message = || format!("amount: {text:?} is not a whole number of minor units");
    text.parse().map_err(|_| wrong(Reason::AmountNotInteger, message()))
}

fn time(text: &str) -> Result<prost_types::Timestamp, Wrong> {
    let time: Timestamp = text.parse().map_err(|_| {
        wrong(
            Reason::TimeInvalid,
            format!("due_at: {text:?} is not written as in RFC 3339, such as 2026-11-21T12:00:00Z"),
        )
    })?;
    let nanos = time.as_nanosecond();
    Ok(prost_types::Timestamp {
        seconds: nanos.div_euclid(1_000_000_000) as i64,
        nanos: nanos.rem_euclid(1_000_000_000) as i32,
    })
}

fn maturity(text: &str) -> Result<OnMaturity, Wrong> {
    match text.to_uppercase().trim_start_matches("ON_MATURITY_") {
        "" => Ok(OnMaturity::Unspecified),
        "CONFIRM" => Ok(OnMaturity::Confirm),
        "CANCEL" => Ok(OnMaturity::Cancel),
        _ => Err(wrong(Reason::FieldInvalid, format!("on_maturity: {text:?} is neither CONFIRM nor CANCEL"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csv(text: &str) -> Lines<&[u8]> {
        Lines::begin(text.as_bytes(), Format::Csv, OnMaturity::Unspecified, "a").unwrap()
    }

    fn all(mut lines: Lines<&[u8]>) -> Vec<Line> {
        std::iter::from_fn(|| lines.next().unwrap()).collect()
    }

    const HEADER: &str = "payer,payee,amount,currency,due_at,on_maturity";

    #[test]
    fn a_line_of_csv_and_an_object_of_json_ask_for_the_same() {
        let csv = all(csv(&format!(
            "\u{feff}{HEADER},key,label.order\r\nalice,\"bob\" ,5,GOLD,2026-11-21T12:00:00Z,confirm,k1,47\r\n"
        )));
        let json = r#"{"payer":"alice","payee":"bob","amount":{"value":"5","currency":"GOLD"},"dueAt":"2026-11-21T12:00:00Z","on_maturity":"CONFIRM","key":"k1","labels":{"order":"47"}}"#;
        let flat = r#"{"payer":"alice","payee":"bob","amount":5,"currency":"GOLD","due_at":"2026-11-21T13:00:00+01:00","onMaturity":"ON_MATURITY_CONFIRM","idempotency_key":"k1","labels":{"order":"47"},"line":3,"reason":"X","message":"y"}"#;

        for text in [json, flat] {
            let mut lines =
                Lines::begin(text.as_bytes(), Format::Jsonl, OnMaturity::Unspecified, "a").unwrap();
            assert_eq!(lines.next().unwrap().unwrap().hold, csv[0].hold);
        }
        let hold = csv[0].hold.as_ref().unwrap();
        assert_eq!((hold.payee.as_str(), hold.on_maturity()), ("bob", OnMaturity::Confirm));
        assert_eq!(hold.labels["order"], "47");
    }

    #[test]
    fn a_line_without_a_key_is_known_by_the_name_of_the_import_and_its_number() {
        let text = format!(
            "{HEADER}\n\na,b,5,GOLD,2026-11-21T12:00:00Z,CONFIRM\na,b,5,GOLD,2026-11-21T12:00:00Z,CONFIRM\n"
        );
        let keys = |name: &str| {
            let lines = Lines::begin(text.as_bytes(), Format::Csv, OnMaturity::Unspecified, name).unwrap();
            all(lines).into_iter().map(|line| line.hold.unwrap().idempotency_key).collect::<Vec<_>>()
        };

        let first = keys("payroll of a company with a long name, in November 2026.csv");

        assert!(first[0].ends_with("-3") && first[1].ends_with("-4"), "{first:?}");
        assert!(first.iter().all(|key| key.len() <= 64 && key.bytes().all(|byte| byte.is_ascii_graphic())));
        assert_eq!(first, keys("payroll of a company with a long name, in November 2026.csv"));
        assert_ne!(first, keys("payroll of a company with a long name, in December 2026.csv"));
    }

    #[test]
    fn a_line_that_is_wrong_says_why_and_takes_no_other_with_it() {
        let good = "a,b,5,GOLD,2026-11-21T12:00:00Z,CONFIRM";
        let long = format!("a,b,5,GOLD,2026-11-21T12:00:00Z,{}", "x".repeat(70_000));
        let bad = [
            ("a,b,5", "MESSAGE_MALFORMED"),
            ("a,\"b,5,GOLD,2026-11-21T12:00:00Z,CONFIRM", "MESSAGE_MALFORMED"),
            ("a,b,5.5,GOLD,2026-11-21T12:00:00Z,CONFIRM", "AMOUNT_NOT_INTEGER"),
            ("a,b,99999999999999999999,GOLD,2026-11-21T12:00:00Z,CONFIRM", "AMOUNT_NOT_INTEGER"),
            ("a,b,5,GOLD,yesterday,CONFIRM", "TIME_INVALID"),
            ("a,b,5,GOLD,2026-11-21T12:00:00Z,PAY", "FIELD_INVALID"),
            ("a,b,5,GOLD,2026-11-21T12:00:00Z,", "FIELD_REQUIRED"),
            (long.as_str(), "MESSAGE_MALFORMED"),
        ];
        for (line, reason) in bad {
            let lines = all(csv(&format!("{HEADER}\n{good}\n{line}\n{good}\n")));

            assert_eq!(lines.len(), 3, "{line:.50}");
            assert!(lines[0].hold.is_ok() && lines[2].hold.is_ok(), "{line:.50}");
            assert_eq!(lines[1].hold.as_ref().unwrap_err().reason, reason, "{line:.50}");
        }
        let mut broken =
            Lines::begin(&b"\xff\xfe\n{}\n[1]\n{\"payer\":1"[..], Format::Jsonl, OnMaturity::Confirm, "a")
                .unwrap();
        let reasons: Vec<String> =
            std::iter::from_fn(|| broken.next().unwrap()).map(|line| line.hold.unwrap_err().reason).collect();
        assert_eq!(reasons, ["MESSAGE_MALFORMED"; 4]);
    }

    #[test]
    fn a_header_that_is_none_of_holds_is_told_at_once() {
        let error = |header: &str, on_maturity| {
            let Err(wrong) = Lines::begin(header.as_bytes(), Format::Csv, on_maturity, "a") else {
                panic!("{header} is accepted")
            };
            wrong
        };

        assert_eq!(error("", OnMaturity::Confirm).reason, "FIELD_REQUIRED");
        assert_eq!(
            error("payer,payee,amount,currency,due_at", OnMaturity::Unspecified).reason,
            "FIELD_REQUIRED"
        );
        assert_eq!(error(&format!("{HEADER},payer"), OnMaturity::Unspecified).reason, "FIELD_INVALID");
        let unknown = error(&format!("{HEADER},order"), OnMaturity::Unspecified);
        assert!(unknown.message.contains("label.order"), "{}", unknown.message);
        assert!(
            Lines::begin(&b"payer,payee,amount,currency,due_at"[..], Format::Csv, OnMaturity::Cancel, "a")
                .is_ok()
        );
    }
}
