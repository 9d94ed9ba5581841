//! A watch as server-sent events, as the HTML standard has them.
//!
//! Each event is called `hold`; its id is the hold's etag, its data the hold. A client that lost the stream comes back with the last
//! id, as browsers do by themselves, and is told what has changed since. One that has seen the end is answered 204, which tells
//! browsers not to come again. An error in the middle is an event called `problem`, after which the stream ends.

use super::{json, problem, routes::Route};
use futures::{StreamExt as _, stream};
use http_body_util::StreamBody;
use hyper::{
    Response, StatusCode,
    body::{Bytes, Frame},
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};
use prost_reflect::DynamicMessage;
use std::time::Duration;
use tonic::{Status, Streaming, body::Body};

/// What a stream of events is.
pub const FORM: &str = "text/event-stream";
/// So long it is seen whether somebody who comes back has missed nothing, and nothing will come.
const END: Duration = Duration::from_secs(1);
/// So often something is sent, so that nobody in between takes the connection for dead.
const SILENCE: Duration = Duration::from_secs(15);

/// What a watch has told, or that it told nothing for a while.
enum Told {
    Message(Result<Option<DynamicMessage>, Status>),
    Nothing,
}

async fn next(watch: &mut Streaming<DynamicMessage>, within: Duration) -> Told {
    match tokio::time::timeout(within, watch.message()).await {
        Ok(message) => Told::Message(message),
        Err(_) => Told::Nothing,
    }
}

/// The answer to a watch. `is_back` says that the client has seen a part of it.
pub async fn response(
    route: &'static Route,
    mut watch: Streaming<DynamicMessage>,
    is_back: bool,
    path: String,
) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let first = if is_back { Some(next(&mut watch, END).await) } else { None };
    if matches!(first, Some(Told::Message(Ok(None)))) {
        *response.status_mut() = StatusCode::NO_CONTENT;
        return response;
    }
    let events = stream::unfold(Some((watch, first, path)), move |state| async move {
        let (mut watch, first, path) = state?;
        let told = match first {
            Some(told) => told,
            None => next(&mut watch, SILENCE).await,
        };
        match told {
            Told::Nothing => Some((":\n\n".to_owned(), Some((watch, None, path)))),
            Told::Message(Ok(None)) => None,
            Told::Message(Ok(Some(message))) => match event(route, &message) {
                Ok(event) => Some((event, Some((watch, None, path)))),
                Err(status) => Some((last(&status, &path), None)),
            },
            Told::Message(Err(status)) => Some((last(&status, &path), None)),
        }
    });
    let frames = events.map(|event| Ok::<_, Status>(Frame::data(Bytes::from(event))));
    *response.body_mut() = Body::new(StreamBody::new(frames));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(FORM));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn event(route: &Route, message: &DynamicMessage) -> Result<String, Status> {
    let hold = route.shown(message);
    let json = String::from_utf8_lossy(&json::text(&hold)?).into_owned();
    Ok(format!("id: {}\nevent: hold\ndata: {json}\n\n", super::etag(&hold)))
}

fn last(status: &Status, path: &str) -> String {
    format!("event: problem\ndata: {}\n\n", problem::document(status, path).1)
}
