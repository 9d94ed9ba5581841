//! A small HTTP listener of its own for whoever watches the process: `/metrics`, `/livez`, `/readyz`, `/version`.
//!
//! It is apart from the API, so that it can be bound to another address than callers reach. It tells numbers and names of
//! shards, and no account, amount or id of a hold.

use super::{Calls, Gauges, gauges::Sources};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// OpenMetrics.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that is told.
pub struct Watched {
    /// What is measured when somebody asks.
    pub gauges: Gauges,
    /// The API's methods.
    pub calls: Calls,
    /// What the gauges are read from.
    pub sources: Sources,
}

/// Serves until asked to stop.
pub async fn serve(listener: TcpListener, watched: Watched, stop: CancellationToken) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/version", get(version))
        .with_state(Arc::new(watched));
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "nobody can watch this instance any more");
    }
}

async fn metrics(State(watched): State<Arc<Watched>>) -> impl IntoResponse {
    watched.gauges.read(&watched.sources).await;
    let mut text = String::new();
    let written = watched
        .sources
        .engine
        .metrics()
        .encode(&mut text)
        .and_then(|()| watched.calls.encode(&mut text))
        .and_then(|()| watched.gauges.encode(&mut text))
        .and_then(|()| prometheus_client::encoding::text::encode_eof(&mut text));
    match written {
        Ok(()) => (StatusCode::OK, [(CONTENT_TYPE, TEXT)], text),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], format!("{error}\n"))
        }
    }
}

/// Whether new work is taken. What it lacks is said in words.
async fn ready(State(watched): State<Arc<Watched>>) -> (StatusCode, &'static str) {
    let engine = &watched.sources.engine;
    if engine.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if !engine.store().begin.is_reachable() {
        (StatusCode::SERVICE_UNAVAILABLE, "the coordinator's database does not answer\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn version(State(watched): State<Arc<Watched>>) -> impl IntoResponse {
    let (version, instance) = (env!("CARGO_PKG_VERSION"), watched.sources.vitals.instance);
    let text = format!("{{\"version\":\"{version}\",\"instance\":\"{instance}\"}}\n");
    ([(CONTENT_TYPE, "application/json")], text)
}
