//! Errors as problem documents (RFC 9457), from the same details that gRPC clients get.
//!
//! `type` is the address of what the registry says about the reason, `title` its meaning, `detail` what happened this time. Fields
//! are named as JSON spells them.

use super::{API, headers};
use hyper::{
    Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};
use tcc_proto::{Reason, reason::code_name};
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;

/// What a problem document is.
pub const FORM: &str = "application/problem+json";

/// The names of fields that JSON spells otherwise than the proto files.
static NAMES: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let fields = API.all_messages().flat_map(|of| of.fields().collect::<Vec<_>>());
    let names = fields.map(|field| (field.name().to_owned(), field.json_name().to_owned()));
    names.filter(|(name, json_name)| name != json_name).collect()
});

/// The answer that a status becomes.
pub fn response(status: &Status, path: &str) -> Response<Body> {
    let (code, document) = document(status, path);
    let mut response = super::json_response(document.to_string().into());
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(FORM));
    let metadata = &document["metadata"];
    if let Some(allow) = metadata["allow"].as_str().and_then(|allow| allow.parse().ok()) {
        headers.insert(ALLOW, allow);
    }
    if metadata["replayed"] == "true" {
        headers.insert(headers::REPLAYED, HeaderValue::from_static("true"));
    }
    if let Some(seconds) = retry_after(status) {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if code == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The HTTP status and the document that a status becomes.
pub fn document(status: &Status, path: &str) -> (StatusCode, Value) {
    let info = status.get_details_error_info();
    let reason = info.as_ref().and_then(|info| info.reason.parse::<Reason>().ok());
    let code = reason.map_or_else(|| code_of(status.code()), Reason::http);
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut metadata: BTreeMap<String, String> =
        info.map(|info| info.metadata).unwrap_or_default().into_iter().collect();
    if let Some(field) = metadata.get_mut("field") {
        *field = spelled(field);
    }
    let violations = status.get_details_bad_request().map_or(Vec::new(), |bad| bad.field_violations);
    let errors: Vec<Value> = violations
        .iter()
        .map(|violation| json!({"field": spelled(&violation.field), "detail": violation.description}))
        .collect();
    let document = json!({
        "type": reason.map_or("about:blank".into(), |reason| format!("/v1/errors/{}", reason.name())),
        "title": reason.map_or_else(|| code_name(status.code()), Reason::meaning),
        "status": code.as_u16(),
        "detail": status.message(),
        "instance": path,
        "reason": reason.map_or_else(|| code_name(status.code()), Reason::name),
        "metadata": metadata,
        "errors": errors,
        "retryable": retry_after(status).is_some(),
    });
    (code, document)
}

/// In whole seconds, as HTTP has it: 1 for less than one.
fn retry_after(status: &Status) -> Option<u64> {
    let delay = status.get_details_retry_info()?.retry_delay?;
    Some(delay.as_secs_f64().ceil() as u64)
}

/// The path of a field, as JSON spells it.
fn spelled(path: &str) -> String {
    let spelled = |name: &str| {
        let bare = name.split('[').next().unwrap_or_default();
        NAMES.get(bare).map_or_else(|| name.to_owned(), |json_name| name.replacen(bare, json_name, 1))
    };
    path.split('.').map(spelled).collect::<Vec<_>>().join(".")
}

/// The HTTP status of an error that has no reason.
fn code_of(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::InvalidArgument | Code::FailedPrecondition => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::OutOfRange => 413,
        Code::ResourceExhausted => 429,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => 500,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::reason::{invalid, unavailable, wrong};

    #[test]
    fn a_status_becomes_a_document_with_the_same_details() {
        let status = invalid(&[
            wrong("due_at", Reason::FieldRequired, "is required"),
            wrong("holds[3].amount.value", Reason::AmountNotPositive, "must be 1 or more"),
            wrong("order_id", Reason::FieldUnknown, "is no field of this call"),
        ]);

        let (code, document) = document(&status, "/v1/holds");

        assert_eq!(code, 400);
        let expected = json!({
            "type": "/v1/errors/FIELD_REQUIRED",
            "title": Reason::FieldRequired.meaning(),
            "status": 400,
            "detail": "due_at: is required",
            "instance": "/v1/holds",
            "reason": "FIELD_REQUIRED",
            "metadata": {"field": "dueAt"},
            "errors": [
                {"field": "dueAt", "detail": "is required"},
                {"field": "holds[3].amount.value", "detail": "must be 1 or more"},
                {"field": "order_id", "detail": "is no field of this call"},
            ],
            "retryable": false,
        });
        assert_eq!(document, expected);
    }

    #[test]
    fn what_may_be_repeated_says_after_how_many_seconds() {
        let response = response(&unavailable(Reason::ShardUnavailable, "no"), "/");

        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        assert_eq!(response.headers()[CONTENT_TYPE], FORM);
    }

    #[test]
    fn an_error_without_a_reason_is_told_by_its_code() {
        let response = response(&Status::unauthenticated("who?"), "/");

        assert_eq!(response.status(), 401);
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer");
        assert_eq!(document(&Status::unknown(""), "/").1["type"], "about:blank");
    }
}
