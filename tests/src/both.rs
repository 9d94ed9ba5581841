//! One request over both faces of the API: gRPC, and HTTP with JSON.
//!
//! A request is a message of the API. Its JSON, its path and its query are made here from the descriptors and
//! the served OpenAPI document, and not by the code that reads them. What JSON does not have becomes
//! something that is just as wrong.

use crate::http::{Answer, Http, spelled};
use jiff::Timestamp;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, MapKey, MethodDescriptor, ReflectMessage as _, Value,
};
use serde_json::{Map, Value as Json, json};
use std::{collections::BTreeMap, net::SocketAddr, sync::LazyLock};
use tcc_proto::Reason;
use tonic::{Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_types::StatusExt as _;

static API: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(tcc_proto::FILE_DESCRIPTOR_SET).expect("what the build has compiled")
});

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    method: MethodDescriptor,
    message: DynamicMessage,
}

/// A server's two faces.
pub struct Both {
    channel: Channel,
    http: Http,
    /// The verb and the path of each call.
    routes: BTreeMap<String, (String, String)>,
    /// Sent with each request.
    headers: Vec<(String, String)>,
}

/// The two answers to a request that is refused. They say the same.
#[derive(Debug)]
pub struct Refused {
    /// Over gRPC.
    pub status: Status,
    /// Over HTTP; `None` if it has no path there, since an id in it is empty.
    pub answer: Option<Answer>,
}

impl Asked {
    /// A message to a method, such as `HoldService/GetHold`.
    ///
    /// # Panics
    ///
    /// If there is no such method, or it takes another message.
    #[must_use]
    pub fn new(method: &str, message: &impl Message) -> Self {
        let (service, name) = method.split_once('/').expect("a service and a method");
        let service = API.get_service_by_name(&format!("tcc.v1.{service}")).expect("a service");
        let method = service.methods().find(|method| method.name() == name).expect("a method");
        let message = DynamicMessage::decode(method.input(), message.encode_to_vec().as_slice());
        Self { message: message.expect("a message of the method"), method }
    }
}

impl Both {
    /// Of the server at an address.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub async fn to(address: SocketAddr) -> Self {
        let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
        let channel = endpoint.connect().await.expect("the coordinator listens");
        let mut http = Http::to(address);
        let document = http.send("GET", "/openapi.json", &Json::Null).await.json;
        let mut routes = BTreeMap::new();
        for (path, operations) in document["paths"].as_object().expect("paths") {
            for (verb, operation) in operations.as_object().expect("operations") {
                let name = operation["operationId"].as_str().expect("a name").to_owned();
                routes.insert(name, (verb.to_uppercase(), path.clone()));
            }
        }
        Self { channel, http, routes, headers: Vec::new() }
    }

    /// Sends this header, which is also metadata, with each request.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Asks over gRPC, and answers as soon as there is a message.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub async fn grpc(&self, asked: &Asked) -> Result<(), Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let Asked { method, message } = asked;
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let path: PathAndQuery = path.parse().expect("a path");
        let mut request = tonic::Request::new(message.clone());
        for (name, value) in &self.headers {
            let name: tonic::metadata::AsciiMetadataKey = name.parse().expect("a name");
            request.metadata_mut().insert(name, value.parse().expect("ASCII"));
        }
        let codec = tonic_prost::ProstCodec::<DynamicMessage, ()>::default();
        let mut answers = grpc.server_streaming(request, path, codec).await?.into_inner();
        answers.message().await.map(drop)
    }

    /// Asks over HTTP; `None` if the request has no path.
    pub async fn http(&mut self, asked: &Asked) -> Option<Answer> {
        let (verb, template) = self.routes[asked.method.name()].clone();
        let mut headers = self.headers.clone();
        let mut path = template;
        let (mut body, mut query) = (Map::new(), Vec::new());
        for field in asked.method.input().fields() {
            let place = format!("{{{}}}", field.name());
            if !asked.message.has_field(&field) {
                if path.contains(&place) {
                    return None;
                }
                continue;
            }
            let value = asked.message.get_field(&field);
            if path.contains(&place) {
                path = path.replace(&place, &encoded(value.as_str().unwrap_or_default()));
            } else if field.name() == "etag" {
                let name = if verb == "GET" { "last-event-id" } else { "if-match" };
                headers.push((name.to_owned(), format!("\"{}\"", value.as_str().unwrap_or_default())));
            } else if verb == "POST" {
                body.insert(field.json_name().to_owned(), in_json(&field, &value));
            } else {
                in_query(&field, &value, &mut query);
            }
        }
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        let body = if verb == "POST" { Json::Object(body).to_string() } else { String::new() };
        if !body.is_empty() {
            headers.push(("content-type".to_owned(), "application/json".to_owned()));
        }
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Some(self.http.ask(&verb, &path, &headers, &body).await)
    }

    /// Asks over both. Both answers are this error, about that field, with these details and no others than
    /// each other's.
    ///
    /// # Panics
    ///
    /// If they are not.
    pub async fn refuses(
        &mut self,
        asked: &Asked,
        expected: Reason,
        field: Option<&str>,
        details: &[&str],
    ) -> Refused {
        let what = format!("{} {}", asked.method.name(), asked.message);
        let status = self.grpc(asked).await.expect_err(&what);
        let info =
            status.get_details_error_info().unwrap_or_else(|| panic!("{what}: no reason in {status:?}"));
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            (expected.name(), "tcc"),
            "{what}: {status:?}"
        );
        assert_eq!(status.code(), expected.code(), "{what}");
        assert!(!status.message().is_empty(), "{what}");
        assert_eq!(info.metadata.get("field").map(String::as_str), field, "{what}");
        for detail in details {
            assert!(info.metadata.get(*detail).is_some_and(|detail| !detail.is_empty()), "{what}: {detail}");
        }
        let violations = status.get_details_bad_request().map_or(Vec::new(), |bad| bad.field_violations);
        if let Some(field) = field.filter(|_| status.code() == tonic::Code::InvalidArgument) {
            assert!(violations.iter().any(|violation| violation.field == field), "{what}: {violations:?}");
        }

        let answer = self.http(asked).await;
        if let Some(answer) = &answer {
            answer.check(&what, expected, None);
            let metadata = answer.json["metadata"].as_object().expect("metadata");
            let told = metadata.get("field").and_then(Json::as_str).map(without_index);
            assert_eq!(told, field.map(spelled), "{what}: {:?}", answer.json);
            // The second time it is the same answer again.
            let names = |names: Vec<&String>| {
                let mut names: Vec<String> = names.into_iter().cloned().collect();
                names.retain(|name| name != "replayed");
                names.sort();
                names
            };
            assert_eq!(names(metadata.keys().collect()), names(info.metadata.keys().collect()), "{what}");
            let fields: Vec<String> = violations.iter().map(|violation| spelled(&violation.field)).collect();
            let errors = answer.json["errors"].as_array().expect("errors").iter();
            let errors: Vec<String> =
                errors.map(|error| without_index(error["field"].as_str().expect("a field"))).collect();
            // JSON that cannot be read is told before what is wrong with what was read.
            assert!(errors.iter().all(|error| fields.contains(error)), "{what}: {errors:?} {fields:?}");
            assert_eq!(errors.is_empty(), fields.is_empty(), "{what}: {errors:?} {fields:?}");
            let may_be_repeated = status.get_details_retry_info().is_some();
            assert_eq!(answer.json["retryable"], may_be_repeated, "{what}");
            assert_eq!(!answer.header("retry-after").is_empty(), may_be_repeated, "{what}");
        }
        Refused { status, answer }
    }
}

/// Without a place in a list: `phases[1]` is `phases`.
fn without_index(field: &str) -> String {
    field
        .strip_suffix(']')
        .and_then(|field| field.rsplit_once('['))
        .map_or(field, |(field, _)| field)
        .to_owned()
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn in_query(field: &FieldDescriptor, value: &Value, query: &mut Vec<String>) {
    let name = field.json_name();
    let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match in_json(field, value) {
        Json::Array(items) => {
            query.extend(items.iter().map(|item| format!("{name}={}", encoded(&text(item)))))
        }
        Json::Object(entries) => query.extend(
            entries.iter().map(|(key, value)| format!("{name}.{}={}", encoded(key), encoded(&text(value)))),
        ),
        one => query.push(format!("{name}={}", encoded(&text(&one)))),
    }
}

fn in_json(field: &FieldDescriptor, value: &Value) -> Json {
    match value {
        Value::Bool(flag) => json!(flag),
        Value::I32(number) => json!(number),
        Value::I64(number) => json!(number.to_string()),
        Value::String(text) => json!(text),
        Value::EnumNumber(number) => {
            let kind = field.kind();
            let name = kind.as_enum().and_then(|of| of.get_value(*number));
            name.map_or_else(|| json!(number), |name| json!(name.name()))
        }
        Value::List(items) => items.iter().map(|item| in_json(field, item)).collect(),
        Value::Map(entries) => {
            let kind = field.kind();
            let of = kind.as_message().expect("an entry").map_entry_value_field();
            let entry = |(key, value): (&MapKey, &Value)| {
                (key.as_str().unwrap_or_default().to_owned(), in_json(&of, value))
            };
            Json::Object(entries.iter().map(entry).collect())
        }
        Value::Message(message) if message.descriptor().full_name() == "google.protobuf.Timestamp" => {
            let time: prost_types::Timestamp = message.transcode_to().expect("a timestamp");
            json!(time_text(&time))
        }
        Value::Message(message) => {
            let fields =
                message.fields().map(|(field, value)| (field.json_name().to_owned(), in_json(&field, value)));
            Json::Object(fields.collect())
        }
        other => panic!("no request has {other:?}"),
    }
}

/// As RFC 3339 has it, or something that is as wrong.
pub(crate) fn time_text(time: &prost_types::Timestamp) -> String {
    let is_right = (0..1_000_000_000).contains(&time.nanos);
    match Timestamp::new(time.seconds, time.nanos) {
        Ok(time) if is_right => time.to_string(),
        _ => format!("{}.{}", time.seconds, time.nanos),
    }
}
