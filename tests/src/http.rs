//! A plain HTTP client: it sends what a test has written, and shows what came back.

use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1::{SendRequest, handshake},
    header::HOST,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tcc_proto::{Reason, v1};
use tokio::net::TcpStream;

/// A client with one connection, which it makes anew when it is closed.
pub struct Http {
    address: SocketAddr,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as JSON; null if it is empty.
    pub json: Value,
}

impl Http {
    /// Of the server at an address.
    #[must_use]
    pub fn to(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    /// Sends a request without a body, or with JSON.
    pub async fn send(&mut self, verb: &str, path: &str, body: &Value) -> Answer {
        match body {
            Value::Null => self.ask(verb, path, &[], "").await,
            body => self.ask(verb, path, &[("content-type", "application/json")], &body.to_string()).await,
        }
    }

    /// Sends a request with headers and any body.
    pub async fn ask(&mut self, verb: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let response = self.open(verb, path, headers, body).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("the body comes to its end").to_bytes();
        let json = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") };
        Answer { status: parts.status.as_u16(), headers: parts.headers, json }
    }

    /// Sends a request, and returns as soon as the answer begins.
    pub async fn open(
        &mut self,
        verb: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response<Incoming> {
        let mut request = Request::builder().method(verb).uri(path).header(HOST, self.address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_owned())).expect("a request that can be sent");
        let mut connection = self.connection().await;
        let response = connection.send_request(request).await.expect("the server answers");
        self.connection = Some(connection);
        response
    }

    async fn connection(&mut self) -> SendRequest<Full<Bytes>> {
        if let Some(mut connection) = self.connection.take()
            && connection.ready().await.is_ok()
        {
            return connection;
        }
        let stream = TcpStream::connect(self.address).await.expect("the server listens");
        let (connection, driver) = handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(driver);
        connection
    }
}

impl Answer {
    /// A header, empty if it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Whether this is a problem as the registry has it, about that field as JSON spells it.
    ///
    /// # Panics
    ///
    /// If it is not.
    pub fn check(&self, what: &str, expected: Reason, field: Option<&str>) {
        let problem = &self.json;
        assert_eq!(problem["reason"], expected.name(), "{what}: {problem}");
        assert_eq!(self.status, expected.http(), "{what}: {problem}");
        assert_eq!(problem["status"], self.status, "{what}");
        assert_eq!(problem["type"], format!("/v1/errors/{}", expected.name()), "{what}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{what}");
        if let Some(field) = field {
            assert_eq!(problem["metadata"]["field"], field, "{what}: {problem}");
        }
    }
}

/// A creation as JSON. What JSON does not have becomes something that is just as wrong.
#[must_use]
pub fn hold_json(request: &v1::CreateHoldRequest) -> Value {
    let on_maturity = match v1::OnMaturity::try_from(request.on_maturity) {
        Ok(on_maturity) => json!(on_maturity.as_str_name()),
        Err(_) => json!(request.on_maturity),
    };
    json!({
        "id": request.id,
        "idempotencyKey": request.idempotency_key,
        "payer": request.payer,
        "payee": request.payee,
        "amount": request.amount.as_ref().map(|amount| {
            json!({"value": amount.value.to_string(), "currency": amount.currency})
        }),
        "dueAt": request.due_at.as_ref().map(crate::both::time_text),
        "onMaturity": on_maturity,
        "labels": request.labels,
        "validateOnly": request.validate_only,
    })
}

/// A transfer as JSON, from the creation of a hold.
#[must_use]
pub fn transfer_json(request: &v1::CreateHoldRequest) -> Value {
    let mut json = hold_json(request);
    for field in ["dueAt", "onMaturity", "validateOnly"] {
        json.as_object_mut().expect("an object").remove(field);
    }
    json
}

/// The name of a field, as JSON spells it.
#[must_use]
pub fn spelled(field: &str) -> String {
    let mut words = field.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| name + &word[..1].to_uppercase() + &word[1..])
}
