//! Connections: how many there may be, how they are made, how long they last.
//!
//! A connection belongs to a client that nobody knows yet, so each is bounded in everything that it can use up: time until it
//! has begun to speak, streams, what they hold in memory, silence, age. Above the limits a connection is closed at once,
//! which costs less than answering. HTTP/2 and HTTP/1.1 are told apart by their first bytes. What a client asks for is the
//! gate's business.

use crate::{
    auth::{Gate, Peer},
    config::Traffic,
    counted::Counts,
    http::Http,
    telemetry::{Calls, Traces},
    tls,
    watched::Watched,
};
use futures::future::BoxFuture;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::ServerConfig;
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{either::Either, sync::CancellationToken, task::TaskTracker};
use tonic::{body::Body, codegen::Service, service::Routes};

/// What an HTTP/2 client says first is as long as this, and so is any request of HTTP/1.1.
const PREFACE: usize = 24;
/// What one stream may send before it is read, and a whole connection.
const WINDOWS: (u32, u32) = (64 * 1024, 1024 * 1024);
/// What is kept of an answer that a client does not read, for each stream.
const UNREAD: usize = 64 * 1024;
/// Streams that a client opened and reset before they were looked at (CVE-2023-44487), and that were reset because of its
/// errors: more, and the connection is closed.
const RESETS: (usize, usize) = (20, 1_024);

/// What serves the API.
pub struct Listener {
    /// Where it listens.
    pub tcp: TcpListener,
    /// Its certificate, if it has one.
    pub tls: Option<Arc<Watched<ServerConfig>>>,
    /// What connections may take.
    pub traffic: Traffic,
    /// Who may ask.
    pub gate: Arc<Gate>,
    /// What there is to ask for.
    pub routes: Routes,
    /// How it was answered.
    pub calls: Calls,
    /// Who traces it, if somebody does.
    pub traces: Option<Traces>,
}

impl Listener {
    /// Serves until `stop`, then until the clients have closed their connections.
    pub async fn serve(self, stop: CancellationToken) {
        let Self { tcp, tls, traffic, gate, routes, calls, traces } = self;
        let (http, stopped) = (http(&traffic), stop.clone());
        let shared = Arc::new(Shared { http, tls, traffic, gate, routes, calls, traces, stop: stopped });
        let (tasks, open) = (TaskTracker::new(), Counts::default());
        while let Some(accepted) = stop.run_until_cancelled(tcp.accept()).await {
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Too many open files, mostly: it gets better when others close.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Traffic { connections, connections_per_address, .. } = shared.traffic;
            let Some(counted) = open.one_more(&address.ip(), connections, connections_per_address) else {
                tracing::debug!(%address, "too many connections");
                continue;
            };
            let shared = Arc::clone(&shared);
            tasks.spawn(async move {
                shared.connection(stream, address).await;
                drop(counted);
            });
        }
        drop(tcp);
        tasks.close();
        tasks.wait().await;
    }
}

/// What all connections share.
struct Shared {
    http: auto::Builder<TokioExecutor>,
    tls: Option<Arc<Watched<ServerConfig>>>,
    traffic: Traffic,
    gate: Arc<Gate>,
    routes: Routes,
    calls: Calls,
    traces: Option<Traces>,
    stop: CancellationToken,
}

impl Shared {
    /// One connection, from its first byte to its last.
    async fn connection(&self, stream: TcpStream, address: SocketAddr) {
        let begin_until = Instant::now() + Duration::from_secs(self.traffic.handshake_seconds.into());
        let _ = stream.set_nodelay(true);
        let Some((stream, names)) = self.handshake(stream, begin_until).await else {
            return tracing::debug!(%address, "no TLS handshake");
        };
        let peer = Peer { address, names };
        let heard = Arc::new(AtomicUsize::new(0));
        let stream = Heard { stream, bytes: Arc::clone(&heard) };
        let (gate, routes, calls) = (Arc::clone(&self.gate), self.routes.clone(), self.calls.clone());
        let traces = self.traces.clone();
        let services = Http::new(Guarded { gate, routes, calls, traces, peer });
        let service =
            service_fn(move |request: Request<Incoming>| services.clone().call(request.map(Body::new)));
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(stream), service));

        let mut began = pin!(tokio::time::sleep_until(begin_until));
        let mut old = pin!(tokio::time::sleep(self.age()));
        let (mut has_begun, mut is_leaving) = (false, false);
        let grace = Duration::from_secs(60 * u64::from(self.traffic.connection_grace_minutes));
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%address, %error, "a connection broke");
                    }
                    return;
                }
                () = &mut began, if !has_begun => {
                    if heard.load(Ordering::Relaxed) < PREFACE {
                        return tracing::debug!(%address, "a connection on which nothing was said");
                    }
                    has_begun = true;
                }
                () = &mut old => {
                    if is_leaving {
                        return tracing::debug!(%address, "a connection was cut");
                    }
                    is_leaving = true;
                    old.as_mut().reset(Instant::now() + grace);
                    connection.as_mut().graceful_shutdown();
                }
                () = self.stop.cancelled(), if !is_leaving => {
                    is_leaving = true;
                    old.as_mut().reset(Instant::now() + grace);
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }

    /// The encrypted stream, with the names in the client's certificate; or the stream as it is.
    async fn handshake(&self, stream: TcpStream, until: Instant) -> Option<(Stream, Option<Arc<[String]>>)> {
        let Some(tls) = &self.tls else { return Some((Either::Left(stream), None)) };
        let acceptor = TlsAcceptor::from(tls.current());
        let stream = tokio::time::timeout_at(until, acceptor.accept(stream)).await.ok()?.ok()?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let names = certificate.map(|certificate| tls::names(certificate).into());
        Some((Either::Right(Box::new(stream)), names))
    }

    /// How long a connection may last: not all of those that were made together end together.
    fn age(&self) -> Duration {
        let age = Duration::from_secs(60 * u64::from(self.traffic.connection_age_minutes));
        age.mul_f64(0.9 + 0.2 * fastrand::f64())
    }
}

/// What there is to ask for, behind the gate, on one connection.
#[derive(Clone)]
struct Guarded {
    gate: Arc<Gate>,
    routes: Routes,
    calls: Calls,
    traces: Option<Traces>,
    peer: Peer,
}

impl Service<Request<Body>> for Guarded {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Self { gate, routes, calls, traces, peer } = self.clone();
        let (uri, began) = (request.uri().clone(), std::time::Instant::now());
        let traced = traces.map(|traces| traces.call(uri.path(), request.headers()));
        if let Some(call) = &traced {
            request.extensions_mut().insert(call.context());
        }
        Box::pin(async move {
            let answer = gate.answer(routes, peer, request).await;
            calls.answered(uri.path(), answer.headers(), began);
            if let Some(call) = traced {
                call.answered(answer.headers());
            }
            Ok(answer)
        })
    }
}

fn http(traffic: &Traffic) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    let keep_alive = Duration::from_secs(traffic.keep_alive_seconds.into());
    let handshake = Duration::from_secs(traffic.handshake_seconds.into());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(handshake)
        .max_buf_size((traffic.header_bytes as usize).max(UNREAD));
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(traffic.streams_per_connection)
        .max_header_list_size(traffic.header_bytes)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_send_buf_size(UNREAD)
        .max_pending_accept_reset_streams(RESETS.0)
        .max_local_error_reset_streams(RESETS.1)
        .keep_alive_interval(keep_alive)
        .keep_alive_timeout(keep_alive / 2);
    http
}

type Stream = Either<TcpStream, Box<tokio_rustls::server::TlsStream<TcpStream>>>;

/// A stream that counts what was heard on it.
struct Heard {
    stream: Stream,
    bytes: Arc<AtomicUsize>,
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.bytes.fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
