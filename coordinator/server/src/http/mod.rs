//! The HTTP/JSON face of the gRPC API, on the same port.
//!
//! [`Http`] stands in front of the gRPC services. What says that it is gRPC passes through; everything else is looked up in the
//! table of routes, becomes a gRPC request with the same headers, and its answer becomes JSON again. So whatever
//! stands between here and the services, such as authentication or limits, applies to both faces alike, and nothing is decided here: a rule
//! about holds does not belong into this folder.
//!
//! A message is read from the body when the service asks for it. Whoever is to be turned away for another reason is turned away first.

mod codec;
mod events;
mod headers;
mod json;
mod openapi;
mod problem;
mod routes;

use crate::api::reason::{self, wrong};
use codec::Dynamic;
use futures::{future::Either, stream};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Bytes,
    header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, LOCATION},
    http::request::Parts,
};
use json::Fields;
use prost_reflect::{DescriptorPool, DynamicMessage};
#[cfg(test)]
pub(crate) use routes::ROUTES;
pub(crate) use routes::Route;
use std::{
    sync::LazyLock,
    task::{Context, Poll},
    time::Duration,
};
use tcc_proto::{
    Reason,
    reason::code_name,
    v1::{self, Phase},
};
use tonic::{
    Status, Streaming,
    body::Body,
    client::Grpc,
    codegen::{BoxFuture, Service, StdError},
    metadata::MetadataMap,
};

/// What the compiled proto files say.
static API: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(tcc_proto::FILE_DESCRIPTOR_SET).expect("what the build has compiled")
});

/// What gRPC services look like from here.
trait Services: Service<Request<Body>, Response = Response<Body>, Error: Into<StdError>> {}

impl<S> Services for S where S: Service<Request<Body>, Response = Response<Body>, Error: Into<StdError>> {}

/// gRPC services with their HTTP/JSON face.
#[derive(Debug, Clone)]
pub struct Http<S>(S);

impl<S> Http<S> {
    /// In front of these services.
    #[must_use]
    pub fn new(services: S) -> Self {
        Self(services)
    }
}

impl<S> Service<Request<Body>> for Http<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error: Into<StdError> + Send>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let form = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        if form.starts_with(b"application/grpc") {
            return Either::Left(self.0.call(request));
        }
        let services = self.0.clone();
        Either::Right(Box::pin(async move { Ok(answer(services, request).await) }))
    }
}

/// Answers, whatever happens.
async fn answer(services: impl Services, request: Request<Body>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let is_head = request.method() == Method::HEAD;
    let response =
        respond(services, request).await.unwrap_or_else(|status| problem::response(&status, &path));
    if is_head { response.map(|_| Body::empty()) } else { response }
}

async fn respond(services: impl Services, request: Request<Body>) -> Result<Response<Body>, Status> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let verb = if parts.method == Method::HEAD { "GET" } else { parts.method.as_str() };
    if let Some(page) = page(&path) {
        return if verb == "GET" { Ok(json_response(page)) } else { Err(routes::not_allowed("GET")) };
    }
    let (route, fields) = Route::find(verb, &path)?;
    let is_stream = route.method.is_server_streaming();
    headers::check_accept(&parts.headers, if is_stream { events::FORM } else { "application/json" })?;
    let (seen, wait) = (headers::seen(verb, &parts.headers), headers::wait(&parts.headers));
    let is_back = parts.headers.contains_key(headers::LAST_EVENT_ID);
    let asked = Asked { route, fields, parts, body };

    if is_stream {
        let watch = asked.stream(services).await?;
        return Ok(events::response(route, watch, is_back, path).await);
    }
    if route.method.name() != "GetHold" {
        return show(route, &asked.message(services).await?);
    }
    let Some(seen) = seen else { return show(route, &asked.message(services).await?) };
    let hold = match wait {
        Some(wait) => asked.change(services, wait).await?,
        None => Some(asked.message(services).await?).filter(|hold| etag(&route.shown(hold)) != seen),
    };
    match hold {
        Some(hold) => show(route, &hold),
        None => Ok(unchanged(&seen)),
    }
}

/// A request over HTTP, and the call that it stands for.
struct Asked {
    route: &'static Route,
    fields: Fields,
    parts: Parts,
    body: Body,
}

impl Asked {
    /// The one message that answers a call.
    async fn message(self, services: impl Services) -> Result<DynamicMessage, Status> {
        let mut answers = self.stream(services).await?;
        let answer = answers.message().await?;
        answer.ok_or_else(|| Status::internal("a call without an answer"))
    }

    /// A hold, as soon as it is not as the client has seen it.
    async fn change(
        mut self,
        services: impl Services,
        wait: Duration,
    ) -> Result<Option<DynamicMessage>, Status> {
        self.route = Route::of("WatchHold").ok_or_else(|| Status::internal("no way to watch"))?;
        let mut watch = self.stream(services).await?;
        tokio::time::timeout(wait, watch.message()).await.unwrap_or(Ok(None))
    }

    /// The messages that answer a call.
    async fn stream(self, services: impl Services) -> Result<Streaming<DynamicMessage>, Status> {
        let Self { route, fields, parts, body } = self;
        let path = route.grpc_path().parse().map_err(|_| Status::internal("no path of a call"))?;
        let metadata = MetadataMap::from_headers(passed_on(route, &parts.headers));
        let (extensions, headers) = (parts.extensions, parts.headers);
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let message = stream::once(read(route, fields, query, headers, body));
        let request = tonic::Request::from_parts(metadata, extensions, message);
        let mut grpc = Grpc::new(services);
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let codec = Dynamic::new(route.method.output());
        let answered = grpc.streaming(request, path, codec.clone()).await;
        match codec.unreadable() {
            Some(status) => Err(status),
            None => Ok(answered?.into_inner()),
        }
    }
}

/// The headers that travel along: all but those that say something about gRPC, which no client of this face knows. A preference
/// to wait becomes a deadline, but where it means to wait for a change.
fn passed_on(route: &Route, headers: &HeaderMap) -> HeaderMap {
    let is_grpc = |name: &HeaderName| name.as_str().starts_with("grpc-");
    let mut headers: HeaderMap = headers
        .iter()
        .filter(|(name, _)| !is_grpc(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if route.verb != "GET"
        && let Some(wait) = headers::wait(&headers)
        && let Ok(timeout) = format!("{}S", wait.as_secs()).parse()
    {
        headers.insert("grpc-timeout", timeout);
    }
    headers
}

/// The message of a call, from wherever its fields are.
async fn read(
    route: &Route,
    mut fields: Fields,
    query: String,
    headers: HeaderMap,
    body: Body,
) -> Result<DynamicMessage, Status> {
    let input = route.method.input();
    let body = whole(body, route.limit()).await?;
    let mut in_query = routes::query(&input, &query);
    if route.verb == "POST" {
        if let Some((name, _)) = in_query.first() {
            return Err(wrong(name, Reason::FieldInvalid, "must be in the body, not in the query").into());
        }
        if !body.is_empty() {
            headers::check_body(&headers)?;
            fields.append(&mut json::object(&body)?);
        }
    } else {
        if !body.is_empty() {
            let message = format!("{} takes no body", route.verb);
            return Err(reason::status(Reason::MessageMalformed, message, []));
        }
        fields.append(&mut in_query);
    }
    fields.append(&mut headers::fields(&input, route.verb, &headers)?);
    let message = json::message(&input, fields)?;
    let is_named =
        ["id", "idempotency_key", "validate_only"].iter().any(|name| message.has_field_by_name(name));
    if input.get_field_by_name("idempotency_key").is_some() && !is_named {
        let must = "is required over HTTP, as the header Idempotency-Key, or an id: a lost answer could not be asked for again";
        return Err(wrong("idempotency_key", Reason::IdempotencyKeyRequired, must).into());
    }
    Ok(message)
}

/// A whole body.
async fn whole(body: Body, limit: usize) -> Result<Bytes, Status> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("the body has more than {limit} bytes");
            Err(reason::status(Reason::BodyTooLarge, message, [("max", limit.to_string())]))
        }
        Err(_) => Err(reason::status(Reason::MessageMalformed, "the body breaks off", [])),
    }
}

/// An answer, with what HTTP says about it.
fn show(route: &Route, answer: &DynamicMessage) -> Result<Response<Body>, Status> {
    let shown = route.shown(answer);
    let mut response = json_response(json::text(&shown)?.into());
    let (code, is_made) = outcome(route, phase(&shown));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    if answer.get_field_by_name("replayed").is_some_and(|replayed| replayed.as_bool() == Some(true)) {
        headers.insert(headers::REPLAYED, HeaderValue::from_static("true"));
    }
    let etag = etag(&shown);
    if let Some(etag) = headers::etag(&etag).filter(|_| !etag.is_empty()) {
        headers.insert(ETAG, etag);
    }
    if is_made && let Ok(location) = format!("/v1/holds/{}", text(&shown, "id")).parse() {
        headers.insert(LOCATION, location);
    }
    Ok(response)
}

/// The HTTP status of an answer, and whether a hold was made of which there is more to know.
fn outcome(route: &Route, phase: Phase) -> (StatusCode, bool) {
    let is_final = matches!(phase, Phase::Confirmed | Phase::Cancelled);
    match (route.verb, route.method.name(), phase) {
        ("GET", ..) | (.., Phase::Unspecified) => (StatusCode::OK, false),
        (_, "CreateHold", Phase::Trying) => (StatusCode::ACCEPTED, true),
        (_, "CreateHold", _) => (StatusCode::CREATED, true),
        (_, "Transfer", _) if !is_final => (StatusCode::ACCEPTED, true),
        _ if is_final => (StatusCode::OK, false),
        _ => (StatusCode::ACCEPTED, false),
    }
}

fn unchanged(seen: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    if let Some(etag) = headers::etag(seen) {
        response.headers_mut().insert(ETAG, etag);
    }
    response
}

/// What is not a call: the description of this face, and what the registry says about a reason.
fn page(path: &str) -> Option<Bytes> {
    if path == openapi::PATH {
        return Some(openapi::DOCUMENT.clone());
    }
    let reason: Reason = path.strip_prefix("/v1/errors/")?.parse().ok()?;
    let page = serde_json::json!({
        "reason": reason.name(),
        "code": code_name(reason.code()),
        "status": reason.http(),
        "meaning": reason.meaning(),
        "advice": reason.advice(),
    });
    Some(page.to_string().into())
}

fn json_response(json: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::new(http_body_util::Full::new(json)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn text(message: &DynamicMessage, field: &str) -> String {
    let value = message.get_field_by_name(field);
    value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// How a hold stands; empty if that is not what it is.
fn etag(hold: &DynamicMessage) -> String {
    text(hold, "etag")
}

fn phase(hold: &DynamicMessage) -> Phase {
    let phase = hold.get_field_by_name("phase").and_then(|phase| phase.as_enum_number());
    phase.and_then(|phase| v1::Phase::try_from(phase).ok()).unwrap_or_default()
}
