//! What stands in headers: idempotency keys, etags, how long to wait, which forms a client sends and takes.
//!
//! Sources: the IETF draft of the Idempotency-Key header (a quoted string of RFC 8941; bare keys are taken, too, as many services
//! want them), RFC 9110 for conditional requests, RFC 7240 for `Prefer`, the HTML standard for `Last-Event-ID`.

use super::json::{Fields, Json};
use crate::api::reason::{self, Violation, wrong};
use hyper::{
    HeaderMap,
    header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH},
};
use prost_reflect::MessageDescriptor;
use std::time::Duration;
use tcc_proto::Reason;
use tonic::Status;

/// Where a stream of events goes on.
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The answer is one that was given before.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Nobody waits longer, whatever is preferred.
const LONGEST: u64 = 60;

/// The fields of a request that headers fill.
pub fn fields(of: &MessageDescriptor, verb: &str, headers: &HeaderMap) -> Result<Fields, Violation> {
    let mut fields = Fields::new();
    if of.get_field_by_name("idempotency_key").is_some()
        && let Some(key) = idempotency_key(headers)?
    {
        fields.push(("idempotency_key".to_owned(), Json::Text(key)));
    }
    if of.get_field_by_name("etag").is_some()
        && let Some(etag) = seen(verb, headers)
    {
        fields.push(("etag".to_owned(), Json::Text(etag)));
    }
    Ok(fields)
}

/// The etag that a client has seen. A change is made only if it is still there, a GET answered only if it is not.
pub fn seen(verb: &str, headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let text = match verb {
        // A proxy that compresses answers makes their etags weak.
        "GET" => {
            text(IF_NONE_MATCH).map(|text| text.trim_start_matches("W/")).or_else(|| text(LAST_EVENT_ID))
        }
        _ => text(IF_MATCH),
    }?;
    // Any etag: whatever there is.
    (text != "*").then(|| unquoted(text).unwrap_or_else(|| text.to_owned()))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Violation> {
    let malformed = || {
        let message = "must be 1 to 64 printable ASCII characters without spaces, or those in quotes";
        wrong("idempotency_key", Reason::IdempotencyKeyInvalid, message)
    };
    let given = headers.get_all("idempotency-key").iter().chain(headers.get_all("x-idempotency-key"));
    let mut found: Option<String> = None;
    for value in given {
        let text = value.to_str().map_err(|_| malformed())?;
        let key = unquoted(text).filter(|key| !key.is_empty()).ok_or_else(malformed)?;
        if found.as_ref().is_some_and(|other| *other != key) {
            let message = "is given in two headers that differ";
            return Err(wrong("idempotency_key", Reason::FieldInvalid, message));
        }
        found = Some(key);
    }
    Ok(found)
}

/// A text without the quotes of RFC 8941, if it has any; `None` if it has only one of them.
fn unquoted(text: &str) -> Option<String> {
    let text = text.trim();
    let Some(rest) = text.strip_prefix('"') else { return Some(text.to_owned()) };
    let mut inside = String::new();
    let mut characters = rest.chars();
    loop {
        match characters.next()? {
            '"' => return characters.as_str().is_empty().then_some(inside),
            '\\' => inside.push(characters.next().filter(|next| matches!(next, '"' | '\\'))?),
            other => inside.push(other),
        }
    }
}

/// How long a client wants to wait for more than what there is at once. What it does not say in a form that is known, it does not
/// prefer.
pub fn wait(headers: &HeaderMap) -> Option<Duration> {
    let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = preferences.flat_map(|text| text.split([',', ';']));
    let seconds = preferences.find_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        let value = value.trim().trim_matches('"');
        name.trim().eq_ignore_ascii_case("wait").then(|| value.parse::<u64>().ok())?
    })?;
    Some(Duration::from_secs(seconds.min(LONGEST)))
}

/// Whether a body is what is read here.
pub fn check_body(headers: &HeaderMap) -> Result<(), Status> {
    let is_json =
        headers.get(CONTENT_TYPE).is_some_and(|value| media_type(value.as_bytes()) == "application/json");
    let is_plain = headers.get(CONTENT_ENCODING).is_none_or(|value| value == "identity");
    if is_json && is_plain {
        return Ok(());
    }
    let message = "the body must be application/json, not compressed; the header Content-Type says otherwise or nothing";
    Err(reason::status(Reason::MediaTypeUnsupported, message, []))
}

/// Whether a client takes the form that an answer has.
pub fn check_accept(headers: &HeaderMap, form: &str) -> Result<(), Status> {
    let ranges: Vec<&[u8]> = headers
        .get_all(ACCEPT)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .collect();
    let any = format!("{}/*", form.split('/').next().unwrap_or_default());
    let takes = |range: &&[u8]| {
        let range = media_type(range);
        range == form || range == any || range == "*/*"
    };
    if ranges.is_empty() || ranges.iter().any(takes) {
        return Ok(());
    }
    let message = format!("the answer is {form}, which the header Accept does not take");
    Err(reason::status(Reason::NotAcceptable, message, []))
}

/// Without its parameters.
fn media_type(value: &[u8]) -> String {
    let value = String::from_utf8_lossy(value);
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The header that names how a hold stands.
pub fn etag(etag: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("\"{etag}\"")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::routes::Route;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_key_is_quoted_or_bare_and_the_same_in_both_headers() {
        type Pairs = &'static [(&'static str, &'static str)];
        let taken: [(Pairs, Option<&str>); 5] = [
            (&[("idempotency-key", "order-1")], Some("order-1")),
            (&[("idempotency-key", r#" "order-1" "#)], Some("order-1")),
            (&[("x-idempotency-key", r#""a\"b\\c""#)], Some(r#"a"b\c"#)),
            (&[("idempotency-key", r#""a""#), ("x-idempotency-key", "a")], Some("a")),
            (&[], None),
        ];
        let refused: [&[(&'static str, &'static str)]; 7] = [
            &[("idempotency-key", r#""a"#)],
            &[("idempotency-key", r#""a"b"#)],
            &[("idempotency-key", r#""a\b""#)],
            &[("idempotency-key", "")],
            &[("idempotency-key", r#""""#)],
            &[("idempotency-key", "a"), ("x-idempotency-key", "b")],
            &[("idempotency-key", "a"), ("idempotency-key", "b")],
        ];

        for (pairs, expected) in taken {
            assert_eq!(idempotency_key(&headers(pairs)).unwrap().as_deref(), expected, "{pairs:?}");
        }
        for pairs in refused {
            assert_eq!(idempotency_key(&headers(pairs)).unwrap_err().field, "idempotency_key", "{pairs:?}");
        }
    }

    #[test]
    fn a_header_fills_a_field_that_there_is() {
        let all = headers(&[("idempotency-key", "k"), ("if-match", r#""4""#), ("if-none-match", r#""6""#)]);
        let text = |name: &str, text: &str| vec![(name.to_owned(), Json::Text(text.to_owned()))];

        for (method, expected) in [
            ("CreateHold", text("idempotency_key", "k")),
            ("CancelHold", text("etag", "4")),
            ("WatchHold", text("etag", "6")),
            ("GetHold", Fields::new()),
        ] {
            let route = Route::of(method).unwrap();
            assert_eq!(fields(&route.method.input(), route.verb, &all).unwrap(), expected, "{method}");
        }
        assert_eq!(seen("DELETE", &headers(&[("if-match", "*")])), None);
        assert_eq!(seen("DELETE", &headers(&[("if-match", r#"W/"4""#)])).unwrap(), r#"W/"4""#);
    }

    #[test]
    fn a_wait_that_is_understood_is_preferred() {
        for (value, expected) in [
            ("wait=10", Some(10)),
            (r#"respond-async, WAIT = "7"; x"#, Some(7)),
            ("wait=99999", Some(60)),
            ("wait=soon", None),
            ("wait", None),
            ("return=minimal", None),
        ] {
            assert_eq!(wait(&headers(&[("prefer", value)])), expected.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn forms_are_those_that_are_spoken_here() {
        let body = |pairs| check_body(&headers(pairs)).is_ok();
        assert!(body(&[("content-type", "Application/JSON; charset=utf-8")]));
        assert!(!body(&[("content-type", "text/plain")]));
        assert!(!body(&[]));
        assert!(!body(&[("content-type", "application/json"), ("content-encoding", "gzip")]));
        let takes = |value| check_accept(&headers(&[("accept", value)]), "application/json").is_ok();
        assert!(takes("text/html, application/*;q=0.5"));
        assert!(takes("*/*"));
        assert!(!takes("text/html"));
        assert!(check_accept(&HeaderMap::new(), "text/event-stream").is_ok());
    }
}
