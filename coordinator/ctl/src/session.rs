//! The way to the server: one connection, one deadline a call.
//!
//! Connecting is a step of its own, so that "nobody listens there" is told apart from "no answer came". It keeps out
//! retries: a command that meets an unknown outcome says so and leaves the decision to whoever called it. Only a watch
//! asks again by itself, because reading changes nothing.

use crate::errors::Failure;
use std::time::Duration;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint, Uri},
};

/// For one call, if `--timeout` does not say otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent connection is asked for a sign of life, and how long that may take. An audit may be silent for
/// long, and must not wait for ever for a machine that is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Which server to talk to, and how long to wait for it.
pub struct Session {
    server: String,
    endpoint: Endpoint,
    timeout: Option<Duration>,
}

impl Session {
    /// Connects to nothing yet.
    pub fn new(server: Uri, timeout: Option<Duration>) -> Self {
        let name = server.to_string().trim_end_matches('/').to_owned();
        let endpoint = Endpoint::from(server)
            .connect_timeout(timeout.unwrap_or(DEFAULT_TIMEOUT))
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        Self { server: name, endpoint, timeout }
    }

    /// Connects. A connection lost later is made anew by the next call.
    pub async fn connect(&self) -> Result<Channel, Box<Failure>> {
        self.endpoint.connect().await.map_err(|error| Failure::unreachable(&self.server, &error))
    }

    /// How long one call may take.
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(DEFAULT_TIMEOUT)
    }

    /// How long the caller wants to wait, if it said so.
    pub fn chosen_timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// A message with the deadline of a call. The server sees it, too.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = named(message);
        request.set_timeout(self.timeout());
        request
    }

    /// A message with a deadline only if the caller set one, for what may take long.
    pub fn unhurried_request<T>(&self, message: T) -> Request<T> {
        let mut request = named(message);
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        request
    }

    /// Where it is.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// What an error of this server means.
    pub fn failure(&self, status: Status) -> Box<Failure> {
        Failure::of_status(&self.server, &status)
    }
}

/// A message that says who sends it, for the record of actions, until callers are authenticated.
fn named<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default();
    // What the server would not take as a name is not one.
    let is_name = (1..=64).contains(&user.len()) && user.bytes().all(|byte| byte.is_ascii_graphic());
    if let Some(user) = user.parse::<MetadataValue<Ascii>>().ok().filter(|_| is_name) {
        request.metadata_mut().insert("tcc-caller", user);
    }
    request
}
