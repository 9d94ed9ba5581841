//! The OpenAPI 3.1 document of this face, made of the table of routes and the descriptors.
//!
//! The comments of the proto files become descriptions, and a field whose comment says "Required" is required. What an answer has is
//! always there, but for times and objects that are not set; what a request has may be left out or `null`.

use super::{
    events, problem,
    routes::{ROUTES, Route},
};
use hyper::body::Bytes;
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor, prost_types::FileDescriptorProto};
use serde_json::{Map, Value, json};
use std::sync::LazyLock;
use tcc_core::Amount;
use tcc_proto::Reason;

/// Where it is.
pub const PATH: &str = "/openapi.json";

/// The document.
pub static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());

const DESCRIPTION: &str = "\
Scheduled transfers of a virtual currency, cancellable until they are due, and the accounts that they are between.

Numbers of 64 bits are texts, since many readers of JSON round them; requests may have them as numbers up to 2^53 - 1. Times are RFC 3339.
Every error is a problem document (RFC 9457), whose `reason` is for programs; `GET /v1/errors/{reason}` explains it.";

const UUID7: &str = "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$";
const NAME: &str = "^[!-~]{1,64}$";
const CURRENCY: &str = "^[A-Z][A-Z0-9_]{0,15}$";
/// 1 to 10^15, which is [`Amount::MAX`]. A server may allow less.
const AMOUNT: &str = "^([1-9][0-9]{0,14}|10{15})$";
const WHOLE: &str = "^(0|[1-9][0-9]*)$";
const LABEL: &str = "^[a-z][a-z0-9_.-]{0,62}$";

/// Which way a message goes. Messages that go both ways have two schemas, since requests may be more lenient.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

fn document() -> Value {
    let mut schemas = Schemas::default();
    let mut paths = Map::new();
    for route in ROUTES.iter() {
        let operation = schemas.operation(route);
        paths.entry(route.path).or_insert_with(|| json!({}))[route.verb.to_lowercase()] = operation;
    }
    paths.insert(PATH.into(), json!({"get": page("GetOpenApi", "This document.", &[])}));
    let reasons: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    let reason = json!({"name": "reason", "in": "path", "required": true, "schema": {"type": "string", "enum": reasons}});
    paths.insert(
        "/v1/errors/{reason}".into(),
        json!({"get": page("GetReason", "What a reason means, and what to do about it.", &[reason])}),
    );
    schemas.0.insert("Problem".into(), of_problems());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tcc",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": schemas.0, "securitySchemes": {"bearer": bearer()}},
    })
}

fn bearer() -> Value {
    let description = "An API key or a token. A client certificate does as well, and a server with `insecure_dev` needs nothing.";
    json!({"type": "http", "scheme": "bearer", "description": description})
}

fn page(name: &str, summary: &str, parameters: &[Value]) -> Value {
    let answer =
        json!({"description": summary, "content": {"application/json": {"schema": {"type": "object"}}}});
    json!({
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "responses": {"200": answer, "default": failed()},
    })
}

fn of_problems() -> Value {
    let violation = json!({
        "type": "object",
        "properties": {"field": {"type": "string"}, "detail": {"type": "string"}},
        "required": ["field", "detail"],
    });
    json!({
        "type": "object",
        "description": "Why there is no answer, or none yet (RFC 9457).",
        "properties": {
            "type": {"type": "string", "format": "uri-reference", "description": "Where the reason is explained."},
            "title": {"type": "string", "description": "What the reason means."},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "What happened this time."},
            "instance": {"type": "string", "format": "uri-reference"},
            "reason": {"type": "string", "description": "For programs, such as INSUFFICIENT_FUNDS."},
            "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
            "errors": {"type": "array", "items": violation, "description": "Every field that is wrong."},
            "retryable": {"type": "boolean", "description": "Worth repeating, after the time in Retry-After."},
        },
        "required": ["type", "title", "status", "detail", "instance", "reason", "metadata", "errors", "retryable"],
    })
}

fn failed() -> Value {
    let schema = json!({"$ref": "#/components/schemas/Problem"});
    json!({"description": "A problem.", "content": {(problem::FORM): {"schema": schema}}})
}

/// The schemas of the messages that were met so far.
#[derive(Default)]
struct Schemas(Map<String, Value>);

impl Schemas {
    fn operation(&mut self, route: &Route) -> Value {
        let (method, input) = (&route.method, route.method.input());
        let file = method.parent_file().file_descriptor_proto().clone();
        let description = comment(&file, method.path());
        let in_path = |field: &FieldDescriptor| route.path.contains(&format!("{{{}}}", field.name()));
        let in_header = |field: &FieldDescriptor| matches!(field.name(), "etag" | "idempotency_key");
        let mut parameters = Vec::new();
        for field in input.fields() {
            let is_in_query = route.verb != "POST" && !in_header(&field);
            if in_path(&field) || is_in_query {
                let schema = self.field(&field, Way::In);
                let (place, name) =
                    if in_path(&field) { ("path", field.name()) } else { ("query", field.json_name()) };
                let style = if field.is_map() {
                    "deepObject"
                } else if place == "path" {
                    "simple"
                } else {
                    "form"
                };
                parameters.push(json!({
                    "name": name, "in": place, "required": place == "path", "style": style, "schema": schema,
                }));
            }
        }
        parameters.extend(in_headers(route).into_iter().map(|(name, description)| {
            json!({"name": name, "in": "header", "description": description, "schema": {"type": "string"}})
        }));
        let mut operation = json!({
            "operationId": method.name(),
            "tags": [method.parent_service().name()],
            "summary": description.split(['.', '\n']).next().unwrap_or_default(),
            "description": description,
            "security": [{"bearer": []}],
            "parameters": parameters,
            "responses": self.responses(route),
        });
        let has_body = input.fields().any(|field| !in_path(&field) && !in_header(&field));
        if route.verb == "POST" && has_body {
            let schema = self.object(&input, Way::In, &in_path);
            operation["requestBody"] =
                json!({"required": true, "content": {"application/json": {"schema": schema}}});
        }
        operation
    }

    fn responses(&mut self, route: &Route) -> Value {
        let answer = match route.method.output().get_field_by_name(route.answer).map(|field| field.kind()) {
            Some(Kind::Message(of)) => self.message(&of, Way::Out),
            _ => self.message(&route.method.output(), Way::Out),
        };
        let mut responses = json!({"default": failed()});
        for (code, description) in answers(route) {
            let content = match (*code, route.method.is_server_streaming()) {
                ("204" | "304", _) => json!({}),
                (_, true) => json!({(events::FORM): {"schema": {"type": "string"}}}),
                (_, false) => json!({"application/json": {"schema": answer}}),
            };
            responses[*code] = json!({"description": description, "content": content});
        }
        responses
    }

    /// A reference to a message's schema.
    fn message(&mut self, of: &MessageDescriptor, way: Way) -> Value {
        let name = if way == Way::In { format!("{}Input", of.name()) } else { of.name().to_owned() };
        if !self.0.contains_key(&name) {
            self.0.insert(name.clone(), Value::Null);
            let schema = self.object(of, way, &|_: &FieldDescriptor| false);
            self.0.insert(name.clone(), schema);
        }
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    fn object(
        &mut self,
        of: &MessageDescriptor,
        way: Way,
        is_elsewhere: &dyn Fn(&FieldDescriptor) -> bool,
    ) -> Value {
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for field in of.fields().filter(|field| !is_elsewhere(field)) {
            let mut schema = self.field(&field, way);
            let is_required = match way {
                Way::In => ["Required.", "Required:"].iter().any(|word| field_comment(&field).contains(word)),
                Way::Out => !field.supports_presence(),
            };
            if is_required {
                required.push(field.json_name().to_owned());
            } else if way == Way::In && schema["type"].is_string() {
                schema["type"] = json!([schema["type"], "null"]);
            }
            properties.insert(field.json_name().to_owned(), schema);
        }
        let description = comment(of.parent_file_descriptor_proto(), of.path());
        let mut schema = json!({
            "type": "object", "description": description, "properties": properties, "required": required,
        });
        if way == Way::In {
            schema["additionalProperties"] = false.into();
            let names = ["id", "idempotencyKey"];
            if names.iter().all(|name| schema["properties"][name].is_object()) {
                let given = json!({"type": "string"});
                schema["not"] =
                    json!({"required": names, "properties": {"id": given, "idempotencyKey": given}});
            }
        }
        schema
    }

    fn field(&mut self, field: &FieldDescriptor, way: Way) -> Value {
        let mut schema = match field.kind() {
            Kind::Message(entry) if field.is_map() => {
                let mut of = self.value(&entry.map_entry_value_field(), way);
                let mut schema = json!({"type": "object"});
                if field.name() == "labels" && way == Way::In {
                    of["maxLength"] = 128.into();
                    schema["maxProperties"] = 16.into();
                    schema["propertyNames"] = json!({"pattern": LABEL});
                }
                schema["additionalProperties"] = of;
                schema
            }
            _ if field.is_list() => json!({"type": "array", "items": self.value(field, way)}),
            _ => self.value(field, way),
        };
        schema["description"] = field_comment(field).into();
        schema
    }

    fn value(&mut self, field: &FieldDescriptor, way: Way) -> Value {
        match field.kind() {
            Kind::Bool => json!({"type": "boolean"}),
            Kind::Int32 if way == Way::In => {
                json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": i32::MAX})
            }
            Kind::Int32 => json!({"type": "integer", "format": "int32"}),
            Kind::Int64 if field.full_name() == "tcc.v1.Amount.value" && way == Way::In => {
                json!({"type": ["string", "integer"], "format": "int64", "pattern": AMOUNT, "minimum": 1, "maximum": Amount::MAX})
            }
            Kind::Int64 if way == Way::In => {
                json!({"type": ["string", "integer"], "format": "int64", "pattern": WHOLE, "minimum": 0})
            }
            Kind::Int64 => json!({"type": "string", "format": "int64", "pattern": "^-?[0-9]+$"}),
            Kind::Enum(of) => {
                let skipped = usize::from(way == Way::In);
                let names: Vec<_> = of.values().skip(skipped).map(|value| value.name().to_owned()).collect();
                json!({"type": "string", "enum": names})
            }
            Kind::Message(of) => match of.full_name() {
                "google.protobuf.Timestamp" => json!({"type": "string", "format": "date-time"}),
                "google.protobuf.Duration" => json!({"type": "string", "pattern": "^-?[0-9.]+s$"}),
                _ => self.message(&of, way),
            },
            _ => match pattern(field).filter(|_| way == Way::In) {
                Some(pattern) => json!({"type": "string", "pattern": pattern}),
                None => json!({"type": "string"}),
            },
        }
    }
}

/// What a text in a request must look like.
fn pattern(field: &FieldDescriptor) -> Option<&'static str> {
    match (field.parent_message().name(), field.name()) {
        (message, "id") if message.contains("Account") => Some(NAME),
        (_, "id") => Some(UUID7),
        (_, "payer" | "payee" | "account" | "idempotency_key") => Some(NAME),
        (_, "currency") => Some(CURRENCY),
        _ => None,
    }
}

/// The headers that a route knows.
fn in_headers(route: &Route) -> Vec<(&'static str, &'static str)> {
    let input = route.method.input();
    let mut headers = Vec::new();
    if input.get_field_by_name("idempotency_key").is_some() {
        let description = "The idempotency key, in quotes or bare, if the body has neither it nor an id. X-Idempotency-Key is the same.";
        headers.push(("Idempotency-Key", description));
    }
    match (route.verb, route.method.name()) {
        (_, "GetHold") => {
            headers.push(("If-None-Match", "An etag: 304 while the hold still has it."));
            headers
                .push(("Prefer", "`wait=10`, with If-None-Match: waits up to 10 seconds for another etag."));
        }
        (_, "WatchHold") => headers.push(("Last-Event-ID", "The id of the last event that was seen.")),
        ("GET", _) => {}
        _ if input.get_field_by_name("etag").is_some() => {
            headers.push(("If-Match", "Only if the hold still has this etag."));
        }
        _ => {}
    }
    if route.verb != "GET" && input.parent_file().name() == "tcc/v1/hold_service.proto" {
        headers.push(("Prefer", "`wait=10`: waits up to 10 seconds for an answer."));
    }
    headers
}

/// The statuses that a route answers with when all is well.
fn answers(route: &Route) -> &'static [(&'static str, &'static str)] {
    match route.method.name() {
        "CreateHold" => &[
            ("200", "What would be created."),
            ("201", "The hold. `Idempotent-Replayed: true` says that it was there."),
            ("202", "The hold, before all shards have answered."),
        ],
        "Transfer" => &[("200", "Paid."), ("202", "On its way: ask for it again.")],
        "CancelHold" => {
            &[("200", "Released, for good."), ("202", "It is not known yet whether it will be: ask again.")]
        }
        "ConfirmHold" => &[("200", "Paid."), ("202", "On its way: ask for it again.")],
        "GetHold" => &[("200", "The hold."), ("304", "As it was seen.")],
        "WatchHold" => &[
            (
                "200",
                "Events called `hold`, whose data are holds; one called `problem` at the end if there was one.",
            ),
            ("204", "The hold is final, and was seen so."),
        ],
        _ => &[("200", "The answer.")],
    }
}

fn field_comment(field: &FieldDescriptor) -> String {
    comment(field.parent_file().file_descriptor_proto(), field.path())
}

/// What stands above something in its proto file.
fn comment(file: &FileDescriptorProto, path: &[i32]) -> String {
    let mut locations = file.source_code_info.iter().flat_map(|info| &info.location);
    let location = locations.find(|location| location.path == path);
    let comment = location.map(|location| location.leading_comments()).unwrap_or_default();
    comment.trim().lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every value in a document, with what it is under.
    fn walk(value: &Value, name: &str, see: &mut dyn FnMut(&str, &Value)) {
        see(name, value);
        match value {
            Value::Object(members) => members.iter().for_each(|(name, value)| walk(value, name, see)),
            Value::Array(items) => items.iter().for_each(|value| walk(value, name, see)),
            _ => {}
        }
    }

    #[test]
    fn every_route_is_there_and_every_reference_leads_somewhere() {
        let document: Value = serde_json::from_slice(&DOCUMENT).unwrap();

        for route in ROUTES.iter() {
            let operation = &document["paths"][route.path][route.verb.to_lowercase()];
            assert_eq!(operation["operationId"], route.method.name());
            assert_ne!(operation["summary"], "", "{}", route.path);
        }
        let mut references = 0;
        walk(&document, "", &mut |name, value| {
            if name == "$ref" {
                let pointer = value.as_str().unwrap().strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some_and(Value::is_object), "{pointer}");
                references += 1;
            }
        });
        assert!(references > ROUTES.len());
    }

    #[test]
    fn comments_and_what_is_required_come_from_the_proto_files() {
        let document = document();

        let hold = &document["components"]["schemas"]["Hold"];
        assert_eq!(hold["description"], "A transaction of one ledger debit and one ledger credit.");
        assert_eq!(hold["properties"]["payer"]["type"], "string");
        let create =
            &document["paths"]["/v1/holds"]["post"]["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(create["required"], json!(["payer", "payee", "amount", "dueAt", "onMaturity"]));
        assert_eq!(create["properties"]["idempotencyKey"]["type"], json!(["string", "null"]));
        assert_eq!(create["not"]["required"], json!(["id", "idempotencyKey"]));
        assert_eq!(document["components"]["schemas"]["AmountInput"]["properties"]["value"]["minimum"], 1);
        let issue = &document["paths"]["/v1/accounts/{account}:issue"]["post"];
        let body = &issue["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(body["required"], json!(["id", "amount"]));
        assert_eq!(issue["parameters"][0]["in"], "path");
    }
}
