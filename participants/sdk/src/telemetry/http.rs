//! A small HTTP listener for whoever watches the process, apart from what coordinators call.

use super::Counted;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// OpenMetrics.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until asked to stop.
pub(crate) async fn serve(listener: TcpListener, counted: Counted, stop: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/version", get(version))
        .with_state(counted);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "nobody can watch this participant any more");
    }
}

async fn metrics(State(counted): State<Counted>) -> impl IntoResponse {
    match counted.encode() {
        Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, TEXT)], text),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], format!("{error}\n"))
        }
    }
}

/// Whether it can work. What it lacks is said in words.
async fn ready(State(counted): State<Counted>) -> (StatusCode, String) {
    match counted.trouble() {
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")),
        None => (StatusCode::OK, "ok\n".to_owned()),
    }
}

async fn version() -> impl IntoResponse {
    let text = format!("{{\"version\":\"{}\"}}\n", env!("CARGO_PKG_VERSION"));
    ([(CONTENT_TYPE, "application/json")], text)
}
