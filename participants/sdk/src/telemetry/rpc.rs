//! Times the API's methods, as OpenTelemetry's conventions name that.
//!
//! A call is timed from its head to the head of its answer, which is the whole of it but for streams. Its status is the
//! one in that head: an error has it there, and what has none is OK.

use super::{Histogram, histogram::CALLS};
use prometheus_client::{encoding::text::encode_registry, metrics::family::Family, registry::Registry};
use prost_types::FileDescriptorSet;
use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Instant,
};
use tcc_proto::reason::code_name;
use tonic::{Code, codegen::http::HeaderMap};

type Labels = [(&'static str, String); 3];

/// How many status codes gRPC has, from 0 on.
const CODES: usize = 17;
/// What a method that the API does not have is called.
const OTHER: &str = "_OTHER";

/// How long each method took, by its answer. Clones share it.
#[derive(Clone)]
pub struct Calls(Arc<Inner>);

struct Inner {
    registry: Registry,
    durations: Family<Labels, Histogram, fn() -> Histogram>,
    /// By path, then by status code.
    methods: HashMap<String, Method>,
    other: Method,
}

struct Method {
    name: String,
    by_code: [OnceLock<Histogram>; CODES],
}

impl Calls {
    /// For every method of these compiled proto files.
    ///
    /// # Panics
    ///
    /// If they do not decode: they are compiled in.
    #[must_use]
    pub fn new(descriptors: &[u8]) -> Self {
        let files: FileDescriptorSet =
            prost::Message::decode(descriptors).expect("the compiled proto files decode");
        let durations =
            Family::<Labels, Histogram, fn() -> Histogram>::new_with_constructor(|| Histogram::new(CALLS));
        let mut registry = Registry::default();
        registry.register(
            "rpc_server_call_duration_seconds",
            "Time to the answer of a call of the API",
            durations.clone(),
        );
        let mut methods = HashMap::new();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    methods.insert(format!("/{name}"), Method::new(name));
                }
            }
        }
        let inner = Inner { registry, durations, methods, other: Method::new(OTHER.to_owned()) };
        // Answers of one method, so that the family is never empty.
        inner.series(&inner.other, Code::Unimplemented);
        Self(Arc::new(inner))
    }

    /// Counts an answer by its head: of which method, and to what was asked when.
    pub fn answered(&self, path: &str, head: &HeaderMap, began: Instant) {
        let method = self.0.methods.get(path).unwrap_or(&self.0.other);
        let status = head.get("grpc-status").map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()));
        self.0.series(method, status).observe(began.elapsed());
    }

    /// Writes all series, without an end mark.
    ///
    /// # Errors
    ///
    /// The writer's.
    pub fn encode(&self, text: &mut String) -> Result<(), std::fmt::Error> {
        encode_registry(text, &self.0.registry)
    }
}

impl Method {
    fn new(name: String) -> Self {
        Self { name, by_code: [const { OnceLock::new() }; CODES] }
    }
}

impl Inner {
    fn series<'a>(&self, method: &'a Method, code: Code) -> &'a Histogram {
        method.by_code[code as usize].get_or_init(|| {
            let labels = [
                ("rpc_system_name", "grpc".to_owned()),
                ("rpc_method", method.name.clone()),
                ("rpc_response_status_code", code_name(code).to_owned()),
            ];
            self.durations.get_or_create(&labels).clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_by_its_method_and_its_answer_and_an_unknown_one_by_neither() {
        let calls = Calls::new(tcc_proto::FILE_DESCRIPTOR_SET);
        let mut refused = HeaderMap::new();
        refused.insert("grpc-status", "9".parse().unwrap());

        calls.answered("/tcc.v1.HoldService/GetHold", &HeaderMap::new(), Instant::now());
        calls.answered("/tcc.v1.HoldService/GetHold", &refused, Instant::now());
        calls.answered("/whatever/somebody/asks", &refused, Instant::now());

        let mut text = String::new();
        calls.encode(&mut text).unwrap();
        for (method, code) in [
            ("tcc.v1.HoldService/GetHold", "OK"),
            ("tcc.v1.HoldService/GetHold", "FAILED_PRECONDITION"),
            (OTHER, "FAILED_PRECONDITION"),
        ] {
            let labels = format!(
                "{{rpc_system_name=\"grpc\",rpc_method=\"{method}\",rpc_response_status_code=\"{code}\"}} 1"
            );
            assert!(text.contains(&format!("rpc_server_call_duration_seconds_count{labels}")), "{text}");
        }
    }
}
