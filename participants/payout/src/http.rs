//! One HTTP request with a deadline, over TLS or on this machine.
//!
//! It follows no redirect, repeats nothing, and takes no more of an answer than it must: whether a request may be repeated is for
//! whoever sends it. An error never tells what was sent.

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{HeaderMap, Request, StatusCode, Uri, body::Bytes};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use std::{error::Error, path::Path, sync::Arc, time::Duration};

/// How long an answer may be, in bytes.
const MAX_ANSWER: usize = 256 * 1024;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// An HTTP client.
#[derive(Clone)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Http {
    /// A client that believes the authorities in a file (PEM), or the system's.
    ///
    /// # Errors
    ///
    /// What is wrong with the file.
    pub fn new(ca: Option<&Path>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        match ca {
            None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
            Some(path) => {
                let wrong = |error: &dyn Error| format!("{}: {error}", path.display());
                for certificate in CertificateDer::pem_file_iter(path).map_err(|e| wrong(&e))? {
                    roots.add(certificate.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
                }
            }
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider speaks TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        // Whether to send something again is not for the client to decide.
        let client = Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build(connector);
        Ok(Self { client })
    }

    /// Sends a request, and waits for the whole answer.
    ///
    /// # Errors
    ///
    /// Why there is no answer, for people. It may have arrived.
    pub async fn send(&self, request: Request<Full<Bytes>>, deadline: Duration) -> Result<Reply, String> {
        let sending = async {
            let response = self.client.request(request).await.map_err(|e| with_causes(&e))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| e.to_string())?;
            Ok(Reply { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        let answered = tokio::time::timeout(deadline, sending).await;
        answered.map_err(|_| format!("no answer within {} ms", deadline.as_millis()))?
    }
}

/// Reads the address of an API: encrypted, or on this machine.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_url(text: &str) -> Result<(), String> {
    // A place in the path has braces, which no url has.
    let uri: Uri = text.replace(['{', '}'], "").parse().map_err(|_| format!("{text:?} is no url"))?;
    let is_local = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if is_local => Ok(()),
        _ => Err(format!("{text:?}: write https://…; http:// is for this machine")),
    }
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
