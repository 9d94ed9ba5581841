//! How values look: as a table for people, as JSON or YAML for scripts.
//!
//! The JSON has the proto's field names in snake_case and is otherwise proto3 JSON: 64-bit integers are strings, because
//! readers that take numbers for floats would lose units; enums are names, without their prefix; times are RFC 3339 with
//! microseconds. Unlike proto3 JSON every key is always there, and a time that is not set is `null`. Results go to
//! stdout, and nothing but results; everything said about them goes to stderr. It keeps out what a value means.

use crate::{errors::Failure, session::Session};
use clap::ValueEnum;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use jiff::SignedDuration;
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::{
    fmt::{self, Display},
    io::{self, Write as _},
};
use tcc_proto::v1;

/// A column that has less room is not broken into lines: the terminal may do that.
const NARROWEST: usize = 20;

/// What `-o` chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Style {
    /// For people
    Table,
    /// For people with wide terminals: more columns
    Wide,
    /// For scripts: one object, or one a line where the answer comes in parts
    Json,
    /// For scripts: each thing of a list on a line of its own
    Jsonl,
    /// For scripts that read YAML
    Yaml,
    /// Ids or names only, one a line
    Name,
}

/// For whom a style is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// For scripts.
    Json,
}

/// Where results and complaints go.
pub struct Output {
    style: Style,
}

impl Output {
    /// In a format.
    pub fn new(style: Style) -> Self {
        Self { style }
    }

    /// How results are printed, for those that come in parts.
    pub fn format(&self) -> Format {
        match self.style {
            Style::Table | Style::Wide => Format::Table,
            Style::Json | Style::Jsonl | Style::Yaml | Style::Name => Format::Json,
        }
    }

    /// Whether people read it.
    pub fn is_for_people(&self) -> bool {
        self.format() == Format::Table
    }

    /// Prints one result: as its `Display` for people, as JSON or YAML for scripts. `{:#}` has more columns.
    pub fn show(&self, result: &(impl Serialize + Display)) -> Result<(), Box<Failure>> {
        let text = match self.style {
            Style::Table => result.to_string(),
            Style::Wide => format!("{result:#}"),
            Style::Json | Style::Jsonl => json(result),
            Style::Yaml => yaml(&value(result)),
            Style::Name => name_of(&value(result)),
        };
        write(&text)
    }

    /// As [`Output::show`], for a result whose field of this name is a list of things.
    pub fn show_list(&self, result: &(impl Serialize + Display), list: &str) -> Result<(), Box<Failure>> {
        let all = value(result);
        let things = all.get(list).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let line: fn(&Value) -> String = match self.style {
            Style::Jsonl => Value::to_string,
            Style::Name => name_of,
            _ => return self.show(result),
        };
        things.iter().try_for_each(|thing| write(&line(thing)))
    }

    /// Says something about a result, to people only.
    pub fn remark(&self, text: &str) {
        if self.format() == Format::Table {
            say(&format!("tccctl: {}", printable(text)));
        }
    }

    /// Says to people what is about to be changed, if they chose it by a name.
    pub fn acting_on(&self, session: &Session) {
        if session.context().is_some() {
            self.remark(&format!("acting on {}", session.place()));
        }
    }

    /// Says why there is no result.
    pub fn complain(&self, failure: &Failure) {
        let complaint = Complaint { error: failure, id: failure.id.map(|id| id.to_string()) };
        match self.style {
            Style::Json | Style::Jsonl => say(&json(&complaint)),
            Style::Yaml => say(&yaml(&value(&complaint))),
            Style::Table | Style::Wide | Style::Name => {
                let lines = [Some(failure.text()), failure.hint()];
                lines.iter().flatten().for_each(|line| say(&format!("tccctl: {}", printable(line))));
            }
        }
    }
}

#[derive(Serialize)]
struct Complaint<'a> {
    error: &'a Failure,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

/// A stderr that is closed is no reason to end with another exit code.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn write(text: &str) -> Result<(), Box<Failure>> {
    // Not println, which panics when the reader has gone, as `| head` does.
    writeln!(io::stdout(), "{text}").map_err(|error| Failure::unwritable(&error))
}

fn value(result: &impl Serialize) -> Value {
    serde_json::to_value(result).expect("views have string keys and no failing serializers")
}

/// What a thing is called: its own id or name, or that of the one that it holds.
fn name_of(thing: &Value) -> String {
    let keys = ["id", "name", "number", "transaction_id", "account"];
    let own = keys.iter().find_map(|key| thing.get(key).and_then(Value::as_str));
    let held = || thing.get("hold").or_else(|| thing.get("plan")).and_then(|held| held.get("id")?.as_str());
    own.or_else(held).unwrap_or_default().to_owned()
}

/// Block style; texts are quoted as in JSON, which YAML reads.
fn yaml(value: &Value) -> String {
    let mut lines = Vec::new();
    yaml_lines(value, 0, &mut lines);
    lines.join("\n")
}

fn yaml_lines(value: &Value, depth: usize, lines: &mut Vec<String>) {
    let indent = "  ".repeat(depth);
    let is_flat = |value: &Value| match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => true,
    };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                if is_flat(value) {
                    lines.push(format!("{indent}{key}: {value}"));
                } else {
                    lines.push(format!("{indent}{key}:"));
                    yaml_lines(value, depth + 1, lines);
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let first = lines.len();
                yaml_lines(item, depth + 1, lines);
                lines[first].replace_range(indent.len()..indent.len() + 2, "- ");
            }
        }
        flat => lines.push(format!("{indent}{flat}")),
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("views have string keys and no failing serializers")
}

/// An `int64`: a string in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int64(pub i64);

impl Display for Int64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Int64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// An amount: `500 GOLD`.
#[derive(Debug, Serialize)]
pub struct Amount {
    value: Int64,
    currency: String,
}

impl From<v1::Amount> for Amount {
    fn from(amount: v1::Amount) -> Self {
        Self { value: Int64(amount.value), currency: amount.currency }
    }
}

impl Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.value, self.currency)
    }
}

/// A moment: RFC 3339 in UTC with microseconds.
pub fn time(time: &prost_types::Timestamp) -> String {
    match moment(time) {
        Some(moment) => format!("{moment:.6}"),
        None => format!("{} s and {} ns after 1970", time.seconds, time.nanos),
    }
}

/// How much later the first moment is than the second.
pub fn elapsed(later: &prost_types::Timestamp, earlier: &prost_types::Timestamp) -> Option<SignedDuration> {
    Some(moment(later)?.duration_since(moment(earlier)?))
}

fn moment(time: &prost_types::Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(time.seconds, time.nanos).ok()
}

/// A duration, for people and for scripts.
#[derive(Debug, Clone, Copy)]
pub struct Span(SignedDuration);

impl From<&prost_types::Duration> for Span {
    fn from(duration: &prost_types::Duration) -> Self {
        let nanos = SignedDuration::from_nanos(duration.nanos.into());
        Self(SignedDuration::from_secs(duration.seconds).saturating_add(nanos))
    }
}

impl From<SignedDuration> for Span {
    fn from(duration: SignedDuration) -> Self {
        Self(duration)
    }
}

/// `3h 2m 1s`; below a minute with milliseconds.
impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.0.unsigned_abs().as_secs() < 60;
        let rest = if short { self.0.subsec_nanos() % 1_000_000 } else { self.0.subsec_nanos() };
        write!(f, "{:#}", self.0.saturating_sub(SignedDuration::from_nanos(rest.into())))
    }
}

/// As proto3 JSON has it: `12.340000s`.
impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sign = if self.0.is_negative() { "-" } else { "" };
        let size = self.0.unsigned_abs();
        serializer.collect_str(&format_args!("{sign}{}.{:06}s", size.as_secs(), size.subsec_micros()))
    }
}

/// The name of an enum's value without the enum's own; a value from a newer server is shown as its number.
pub fn name<E: TryFrom<i32>>(value: i32, prefix: &str, name: fn(&E) -> &'static str) -> String {
    match E::try_from(value) {
        Ok(known) => name(&known).trim_start_matches(prefix).to_owned(),
        Err(_) => value.to_string(),
    }
}

/// For people: nothing is shown as a dash.
pub fn or_dash(text: Option<&str>) -> String {
    match text {
        None | Some("" | "UNSPECIFIED") => "-".to_owned(),
        Some(text) => text.to_owned(),
    }
}

/// Lines of `key  value`.
pub fn fields<const N: usize>(fields: [(&str, String); N]) -> String {
    let mut table = bare();
    for (key, value) in fields {
        table.add_row([key.to_owned(), printable(&value)]);
    }
    rendered(&mut table)
}

/// Lines under a header. A column whose name starts with `>` has numbers, aligned to the right.
pub fn rows<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    table(header.map(str::to_owned).into(), rows.into_iter().map(Vec::from).collect())
}

/// As [`rows`], of as many columns as there are.
pub fn table(header: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let mut table = bare();
    table.set_header(header.iter().map(|name| name.trim_start_matches('>')));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for (column, name) in table.column_iter_mut().zip(&header) {
        if name.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    fit(&mut table);
    table.trim_fmt()
}

/// At a terminal the last column, in which sentences stand, is broken into lines if the table is too wide for it. Ids and numbers
/// never are: they are copied.
fn fit(table: &mut Table) {
    let Some(width) = table.width() else { return };
    let widths: Vec<usize> =
        table.column_max_content_widths().into_iter().map(|width| usize::from(width) + 2).collect();
    let Some((last, others)) = widths.split_last() else { return };
    let others: usize = others.iter().sum();
    let room = usize::from(width).saturating_sub(others);
    if *last <= room || room < NARROWEST {
        return;
    }
    table.set_content_arrangement(ContentArrangement::Dynamic);
    let count = widths.len();
    for (column, index) in table.column_iter_mut().zip(1..) {
        let constraint = match u16::try_from(room) {
            Ok(room) if index == count => ColumnConstraint::Absolute(Width::Fixed(room)),
            _ => ColumnConstraint::ContentWidth,
        };
        column.set_constraint(constraint);
    }
}

fn bare() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn rendered(table: &mut Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Texts of errors come from far away; they must not move the cursor of a terminal or break a line.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::{Duration, Timestamp};

    #[test]
    fn a_time_is_rfc_3339_with_microseconds() {
        assert_eq!(time(&Timestamp { seconds: 0, nanos: 0 }), "1970-01-01T00:00:00.000000Z");
        assert_eq!(
            time(&Timestamp { seconds: 1_790_000_000, nanos: 123_456_789 }),
            "2026-09-21T14:13:20.123456Z"
        );
        assert_eq!(
            time(&Timestamp { seconds: i64::MAX, nanos: 1 }),
            "9223372036854775807 s and 1 ns after 1970"
        );
    }

    #[test]
    fn yaml_says_what_json_says() {
        let value: Value = serde_json::from_str(
            r#"{"id":"7","list":[{"a":"1","b":null},{"a":"x: \"y\""}],"none":[],"deep":{"n":3}}"#,
        )
        .unwrap();

        let expected = concat!(
            "id: \"7\"\nlist:\n  - a: \"1\"\n    b: null\n  - a: \"x: \\\"y\\\"\"\n",
            "none: []\ndeep:\n  n: 3"
        );
        assert_eq!(yaml(&value), expected);
    }

    #[test]
    fn a_thing_is_called_by_its_id_or_by_that_of_the_hold_in_it() {
        for (json, name) in
            [(r#"{"id":"7"}"#, "7"), (r#"{"hold":{"id":"8"}}"#, "8"), (r#"{"name":"shard-0"}"#, "shard-0")]
        {
            assert_eq!(name_of(&serde_json::from_str(json).unwrap()), name);
        }
    }

    #[test]
    fn a_64_bit_integer_is_a_string_in_json() {
        let amount = Amount::from(v1::Amount { value: i64::MAX, currency: "GOLD".into() });

        assert_eq!(json(&amount), r#"{"value":"9223372036854775807","currency":"GOLD"}"#);
        assert_eq!(amount.to_string(), "9223372036854775807 GOLD");
    }

    #[test]
    fn a_duration_is_exact_in_json_and_short_for_people() {
        let cases = [
            (0, 0, "0.000000s", "0s"),
            (0, 250_600_000, "0.250600s", "250ms"),
            (760, 999_000_000, "760.999000s", "12m 40s"),
            (-1, -500_000_000, "-1.500000s", "1s 500ms ago"),
        ];
        for (seconds, nanos, exact, short) in cases {
            let span = Span::from(&Duration { seconds, nanos });

            assert_eq!(json(&span), format!("{exact:?}"));
            assert_eq!(span.to_string(), short);
        }
    }

    #[test]
    fn an_enum_is_its_name_without_prefix_or_its_number() {
        assert_eq!(name(2, "PHASE_", v1::Phase::as_str_name), "HELD");
        assert_eq!(name(0, "PHASE_", v1::Phase::as_str_name), "UNSPECIFIED");
        assert_eq!(name(99, "PHASE_", v1::Phase::as_str_name), "99");
    }

    #[test]
    fn tables_have_no_frame_and_numbers_to_the_right() {
        let table = rows([">N", "NAME"], [["5".into(), "a".into()], ["1000".into(), "b\u{1b}[2J\nc".into()]]);

        assert_eq!(table, "   N  NAME\n   5  a\n1000  b [2J c");
        assert_eq!(fields([("id", "7".into()), ("currency", or_dash(None))]), "id        7\ncurrency  -");
    }

    #[test]
    fn a_complaint_in_json_carries_the_id_to_repeat_with() {
        let mut failure = Failure::incomplete("account");
        failure.id = Some(uuid::Uuid::nil());
        let complaint = Complaint { error: &failure, id: failure.id.map(|id| id.to_string()) };

        assert_eq!(
            json(&complaint),
            concat!(
                r#"{"error":{"code":"INTERNAL","reason":null,"message":"the server's answer has no account","#,
                r#""metadata":{}},"id":"00000000-0000-0000-0000-000000000000"}"#
            )
        );
    }
}
