//! JSON to messages, and back, by the descriptors.
//!
//! The mapping is proto3's canonical one: numbers of 64 bits are texts, times are RFC 3339, enums are their names, `dueAt` and
//! `due_at` are the same field. It is stricter where something might be meant otherwise than it is read: a member that is there
//! twice, one that nobody knows, a number that is not whole or that other readers of JSON would have rounded. Whatever is wrong is
//! told at once, field by field.

use crate::api::reason::{self, Violation, invalid, wrong};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, SerializeOptions, Value,
};
use serde::{
    Deserialize, Deserializer,
    de::{
        IntoDeserializer as _, MapAccess, SeqAccess, Visitor,
        value::{Error as Unreadable, StrDeserializer},
    },
};
use std::{collections::HashMap, fmt};
use tcc_proto::Reason;
use tonic::Status;

/// What was given, by name, in the order in which it was given. One name may be there twice.
pub type Fields = Vec<(String, Json)>;

/// JSON as it was written.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// Stands for a field that is not given.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number that every reader of JSON reads alike, or `None`.
    Number(Option<i64>),
    /// A text, and whatever comes from a path, a query or a header.
    Text(String),
    /// An array.
    List(Vec<Self>),
    /// An object.
    Object(Fields),
}

/// Whole numbers up to this one are exact in every reader of JSON.
const EXACT: u64 = (1 << 53) - 1;
/// So many mistakes are told at most.
const TOLD: usize = 20;
/// So much of a name that nobody knows is told.
const NAME: usize = 64;

/// How messages are written: what is 0 or empty is there, too.
const OPTIONS: SerializeOptions = SerializeOptions::new().skip_default_fields(false);

/// The members of the object that a body is.
pub fn object(body: &[u8]) -> Result<Fields, Status> {
    let malformed = |what: String| {
        reason::status(Reason::MessageMalformed, format!("the body is no JSON object: {what}"), [])
    };
    match serde_json::from_slice(body) {
        Ok(Json::Object(fields)) => Ok(fields),
        Ok(_) => Err(malformed("it is another value".into())),
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// A message made of what was given.
pub fn message(of: &MessageDescriptor, fields: Fields) -> Result<DynamicMessage, Status> {
    let mut reader = Reader::default();
    let message = reader.message(of, "", fields);
    if reader.wrongs.is_empty() { Ok(message) } else { Err(invalid(&reader.wrongs)) }
}

/// A message as JSON.
pub fn text(message: &DynamicMessage) -> Result<Vec<u8>, Status> {
    let mut json = serde_json::Serializer::new(Vec::new());
    match message.serialize_with_options(&mut json, &OPTIONS) {
        Ok(()) => Ok(json.into_inner()),
        Err(error) => Err(Status::internal(format!("an answer that JSON does not have: {error}"))),
    }
}

/// The field of that name, as JSON or the proto file spells it.
pub fn field(of: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    of.get_field_by_json_name(name).or_else(|| of.get_field_by_name(name))
}

/// Reads on when something is wrong, and remembers it. Paths are as the proto files spell them.
#[derive(Default)]
struct Reader {
    wrongs: Vec<Violation>,
}

impl Reader {
    fn message(&mut self, of: &MessageDescriptor, path: &str, fields: Fields) -> DynamicMessage {
        let mut message = DynamicMessage::new(of.clone());
        let mut given = Vec::new();
        for (name, json) in fields {
            let Some(field) = field(of, &name) else {
                self.unknown(of, path, &name);
                continue;
            };
            let path = join(path, field.name());
            if given.contains(&field.number()) {
                self.wrong(&path, Reason::FieldInvalid, "is given twice");
                continue;
            }
            given.push(field.number());
            if json == Json::Null {
                continue;
            }
            if let Some(value) = self.field(&path, &field, json) {
                message.set_field(&field, value);
            }
        }
        message
    }

    fn field(&mut self, path: &str, field: &FieldDescriptor, json: Json) -> Option<Value> {
        match json {
            Json::List(items) if field.is_list() => {
                let items = items.into_iter().enumerate();
                let values = items.filter_map(|(n, item)| self.value(&format!("{path}[{n}]"), field, item));
                Some(Value::List(values.collect()))
            }
            Json::Object(entries) if field.is_map() => {
                let entry = field.kind();
                let of = entry.as_message()?.map_entry_value_field();
                let mut map = HashMap::new();
                for (key, item) in entries {
                    let path = join(path, &cut(&key));
                    let value = self.value(&path, &of, item)?;
                    if map.insert(MapKey::String(key), value).is_some() {
                        self.wrong(&path, Reason::FieldInvalid, "is given twice");
                    }
                }
                Some(Value::Map(map))
            }
            _ if field.is_list() => self.none(path, Reason::FieldInvalid, "must be a list"),
            _ if field.is_map() => self.none(path, Reason::FieldInvalid, "must be an object"),
            json => self.value(path, field, json),
        }
    }

    /// One value of a field, of a list or of a map.
    fn value(&mut self, path: &str, field: &FieldDescriptor, json: Json) -> Option<Value> {
        let must = match (field.kind(), json) {
            (Kind::String, Json::Text(text)) => return Some(Value::String(text)),
            (Kind::Bool, Json::Bool(flag)) => return Some(Value::Bool(flag)),
            (Kind::Int32, json) => match whole(&json).and_then(|number| i32::try_from(number).ok()) {
                Some(number) => return Some(Value::I32(number)),
                None => "must be a whole number of 32 bits".into(),
            },
            (Kind::Int64, json) => match whole(&json) {
                Some(number) => return Some(Value::I64(number)),
                None if field.full_name() == "tcc.v1.Amount.value" => {
                    let must = format!("must be a whole number; above {EXACT} it must be in quotes");
                    return self.none(path, Reason::AmountNotInteger, must);
                }
                None => format!("must be a whole number; above {EXACT} it must be in quotes"),
            },
            (Kind::Enum(of), Json::Text(name)) => match of.get_value_by_name(&name) {
                Some(value) => return Some(Value::EnumNumber(value.number())),
                None => format!("must be {}", names(&of)),
            },
            (Kind::Enum(of), _) => format!("must be {}", names(&of)),
            (Kind::Message(of), json) if of.full_name() == "google.protobuf.Timestamp" => {
                let time = if let Json::Text(text) = &json { time(&of, text) } else { None };
                match time {
                    Some(time) => return Some(Value::Message(time)),
                    None => {
                        let must = "must be a time of RFC 3339 with its zone, such as 2026-11-21T12:00:00Z";
                        return self.none(path, Reason::TimeInvalid, must);
                    }
                }
            }
            (Kind::Message(of), Json::Object(fields)) => {
                return Some(Value::Message(self.message(&of, path, fields)));
            }
            (Kind::Message(_), _) => "must be an object".into(),
            (Kind::Bool, _) => "must be true or false".into(),
            _ => "must be a text".to_owned(),
        };
        self.none(path, Reason::FieldInvalid, must)
    }

    fn unknown(&mut self, of: &MessageDescriptor, path: &str, name: &str) {
        let mut message = "is no field of this call".to_owned();
        let nearest =
            of.fields().min_by_key(|field| strsim::damerau_levenshtein(&cut(name), field.json_name()));
        if let Some(nearest) = nearest {
            message.push_str(&format!("; the nearest one is {}", nearest.json_name()));
        }
        self.wrong(&join(path, &cut(name)), Reason::FieldUnknown, message);
    }

    /// No value, for a reason.
    fn none(&mut self, path: &str, reason: Reason, must: impl Into<String>) -> Option<Value> {
        self.wrong(path, reason, must);
        None
    }

    fn wrong(&mut self, path: &str, reason: Reason, message: impl Into<String>) {
        if self.wrongs.len() < TOLD {
            self.wrongs.push(wrong(path, reason, message));
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn cut(name: &str) -> String {
    name.chars().take(NAME).collect()
}

fn names(of: &EnumDescriptor) -> String {
    let names: Vec<String> = of.values().skip(1).map(|value| value.name().to_owned()).collect();
    names.join(", or ")
}

/// A whole number, or a text of its digits as JSON writes numbers: without zeros before it. One that does not fit becomes the nearest that does, which no limit admits.
fn whole(json: &Json) -> Option<i64> {
    let is_digit = |digit: u8| digit.is_ascii_digit();
    match json {
        Json::Number(number) => *number,
        Json::Text(text) => {
            let digits = text.strip_prefix('-').unwrap_or(text);
            let is_whole = text == "0"
                || (!digits.starts_with('0') && !digits.is_empty() && digits.bytes().all(is_digit));
            let nearest = if digits == text { i64::MAX } else { i64::MIN };
            is_whole.then(|| text.parse().unwrap_or(nearest))
        }
        _ => None,
    }
}

/// A leap second is refused: a timestamp has none, and the second before would be early.
fn time(of: &MessageDescriptor, text: &str) -> Option<DynamicMessage> {
    let deserializer: StrDeserializer<'_, Unreadable> = text.into_deserializer();
    let time = DynamicMessage::deserialize(of.clone(), deserializer).ok()?;
    (text.get(17..19) != Some("60")).then_some(time)
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AsWritten)
    }
}

struct AsWritten;

impl<'de> Visitor<'de> for AsWritten {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Json, E> {
        Ok(Json::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(Some(number).filter(|number| number.unsigned_abs() <= EXACT)))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(i64::try_from(number).ok().filter(|_| number <= EXACT)))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Number(None))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut fields = Fields::new();
        while let Some(member) = members.next_entry()? {
            fields.push(member);
        }
        Ok(Json::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{API, routes::ROUTES};
    use proptest::prelude::*;
    use prost::Message as _;
    use tcc_proto::v1;
    use tonic_types::StatusExt as _;

    fn of(name: &str) -> MessageDescriptor {
        API.get_message_by_name(&format!("tcc.v1.{name}")).unwrap()
    }

    fn read(name: &str, body: &str) -> Result<DynamicMessage, Status> {
        message(&of(name), object(body.as_bytes())?)
    }

    /// The reason of an error, and the fields that it names.
    fn told(refused: &Status) -> (String, Vec<String>) {
        let fields = refused.get_details_bad_request().map_or(Vec::new(), |bad| bad.field_violations);
        let fields = fields.into_iter().map(|violation| violation.field).collect();
        (refused.get_details_error_info().unwrap().reason, fields)
    }

    #[test]
    fn a_hold_is_read_as_it_is_written() {
        let body = r#"{"payer": "alice", "payee": "bob", "amount": {"value": "9007199254740993", "currency": "GOLD"},
            "dueAt": "2026-11-21T12:00:00.5+01:00", "on_maturity": "ON_MATURITY_CANCEL", "labels": {"order": "1"}, "id": null}"#;

        let read: v1::CreateHoldRequest = read("CreateHoldRequest", body).unwrap().transcode_to().unwrap();

        let expected = v1::CreateHoldRequest {
            payer: "alice".into(),
            payee: "bob".into(),
            amount: Some(v1::Amount { value: 9_007_199_254_740_993, currency: "GOLD".into() }),
            due_at: Some(prost_types::Timestamp { seconds: 1_795_258_800, nanos: 500_000_000 }),
            on_maturity: v1::OnMaturity::Cancel.into(),
            labels: [("order".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn an_amount_is_a_whole_number_or_a_text_of_one() {
        for (value, expected) in [
            ("5", 5),
            (r#""5""#, 5),
            ("9007199254740991", 9_007_199_254_740_991),
            (r#""99999999999999999999""#, i64::MAX),
            (r#""-99999999999999999999""#, i64::MIN),
        ] {
            let read: v1::Amount =
                read("Amount", &format!(r#"{{"value": {value}}}"#)).unwrap().transcode_to().unwrap();
            assert_eq!(read.value, expected, "{value}");
        }
        for value in [
            "1.0",
            "1e3",
            "0.1",
            "9007199254740992",
            "-0.0",
            r#""1.5""#,
            r#""+5""#,
            r#""05""#,
            r#""-0""#,
            r#""""#,
            "[]",
        ] {
            let refused = read("Amount", &format!(r#"{{"value": {value}}}"#)).unwrap_err();
            assert_eq!(told(&refused), ("AMOUNT_NOT_INTEGER".into(), vec!["value".into()]), "{value}");
        }
    }

    #[test]
    fn every_field_that_is_wrong_is_told_at_once() {
        let body = r#"{"payer": 7, "payee": "bob", "payee": "carol", "amount": {"value": 1.5}, "dueAt": "tomorrow",
            "onMaturity": 1, "labels": {"a": 1}, "memo": "x", "validateOnly": "true"}"#;

        let refused = read("CreateHoldRequest", body).unwrap_err();

        let fields =
            ["payer", "payee", "amount.value", "due_at", "on_maturity", "labels.a", "memo", "validate_only"];
        assert_eq!(told(&refused), ("FIELD_INVALID".into(), fields.map(String::from).to_vec()));
    }

    #[test]
    fn what_is_given_twice_or_unknown_is_refused() {
        for (body, reason, field) in [
            (r#"{"dueAt": null, "due_at": null}"#, "FIELD_INVALID", "due_at"),
            (r#"{"labels": {"a": "1", "a": "1"}}"#, "FIELD_INVALID", "labels.a"),
            (r#"{"dueat": null}"#, "FIELD_UNKNOWN", "dueat"),
            (r#"{"amount": {"cents": 1}}"#, "FIELD_UNKNOWN", "amount.cents"),
        ] {
            let refused = read("CreateHoldRequest", body).unwrap_err();
            assert_eq!(told(&refused), (reason.into(), vec![field.into()]), "{body}");
        }
        assert!(read("CreateHoldRequest", r#"{"dueat": null}"#).unwrap_err().message().contains("dueAt"));
    }

    #[test]
    fn a_time_is_one_of_rfc_3339_and_nothing_like_it() {
        for time in [
            "2026-02-30T00:00:00Z",
            "2026-12-31T23:59:60Z",
            "2026-11-21T12:00:00",
            "2026-11-21 12:00:00Z",
            "2026-11-21t12:00:00z",
            "0000-01-01T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "1795262400",
            "",
        ] {
            let refused = read("GetBalanceRequest", &format!(r#"{{"at": "{time}"}}"#)).unwrap_err();
            assert_eq!(told(&refused), ("TIME_INVALID".into(), vec!["at".into()]), "{time}");
        }
    }

    #[test]
    fn what_is_no_object_is_malformed() {
        let deep = "[".repeat(1_000);
        let bodies = ["", "7", "[]", "null", "{} {}", r#"{"a": "#, r#"{"a": "\ud800"}"#, "{'a': 1}", &deep];
        for body in bodies {
            let refused = object(body.as_bytes()).unwrap_err();
            assert_eq!(told(&refused).0, "MESSAGE_MALFORMED", "{body}");
        }
        assert!(object(b"{\"a\": \"\xff\"}").is_err());
    }

    #[test]
    fn an_answer_has_all_its_fields() {
        let account = v1::Account { id: "alice".into(), held: i64::MAX, ..Default::default() };
        let message = DynamicMessage::decode(of("Account"), account.encode_to_vec().as_slice()).unwrap();

        let json = String::from_utf8(text(&message).unwrap()).unwrap();

        let expected = r#"{"id":"alice","currency":"","available":"0","held":"9223372036854775807","state":"ACCOUNT_STATE_UNSPECIFIED","version":"0"}"#;
        assert_eq!(json, expected);
    }

    #[test]
    fn every_field_of_a_request_is_of_a_kind_that_can_be_read() {
        let mut queue: Vec<_> = ROUTES.iter().map(|route| route.method.input()).collect();
        while let Some(of) = queue.pop() {
            for field in of.fields() {
                let can_be_read = match field.kind() {
                    Kind::String | Kind::Bool | Kind::Int32 | Kind::Int64 | Kind::Enum(_) => true,
                    Kind::Message(of) if of.is_map_entry() => of.map_entry_key_field().kind() == Kind::String,
                    Kind::Message(of) if of.full_name() == "google.protobuf.Timestamp" => true,
                    Kind::Message(of) => {
                        queue.push(of);
                        true
                    }
                    _ => false,
                };
                assert!(can_be_read, "{}", field.full_name());
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_or_told_what_is_wrong(body in "\\PC*") {
            if let Err(refused) = read("CreateHoldRequest", &body) {
                prop_assert!(!told(&refused).0.is_empty());
            }
        }
    }
}
