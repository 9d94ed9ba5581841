//! Certificates: the API's own, those of its clients, and the authorities that other servers are verified against.
//!
//! The API speaks TLS 1.3 and HTTP/2 and nothing older. What `tccd` connects to (PostgreSQL, an identity provider) may speak
//! TLS 1.2, too. There is no switch that skips the verification of a certificate or a name.

use crate::{config::Tls, watched::WatchError};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The files of the API's side, in the order in which [`server`] takes their contents.
#[must_use]
pub fn files(tls: &Tls) -> Vec<PathBuf> {
    [&tls.certificate, &tls.key].into_iter().chain(&tls.client_ca).cloned().collect()
}

/// The API's side, made of the contents of its [`files`].
///
/// # Errors
///
/// [`WatchError::Content`].
pub fn server(tls: &Tls, contents: &[Vec<u8>]) -> Result<ServerConfig, WatchError> {
    let chain = certificates(&tls.certificate, &contents[0])?;
    let wrong_key = |error: &dyn ToString| WatchError::content(&tls.key, error.to_string());
    let key = PrivateKeyDer::from_pem_slice(&contents[1]).map_err(|e| wrong_key(&e))?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider speaks TLS 1.3");
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = authorities(path, &contents[2])?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
            let verifier =
                if tls.require_client_certificate { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|e| WatchError::content(path, e))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|e| wrong_key(&e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The side of a client: it verifies a server's certificate against the authorities in a file, or the system's, and its name.
///
/// # Errors
///
/// [`WatchError`].
pub fn client(ca: Option<&Path>) -> Result<ClientConfig, WatchError> {
    let roots = match ca {
        Some(path) => {
            let read = |error: std::io::Error| WatchError::Read {
                path: path.display().to_string(),
                why: error.to_string(),
            };
            authorities(path, &std::fs::read(path).map_err(read)?)?
        }
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider speaks TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// The names in a client's certificate, verified before: DNS names and URIs among its subject alternative names.
#[must_use]
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    certificate.valid_dns_names().chain(certificate.valid_uri_names()).map(str::to_owned).collect()
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, WatchError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(WatchError::content(path, "there is no certificate in it (PEM)")),
        Ok(all) => Ok(all),
        Err(error) => Err(WatchError::content(path, error)),
    }
}

fn authorities(path: &Path, pem: &[u8]) -> Result<RootCertStore, WatchError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|error| WatchError::content(path, error))?;
    }
    Ok(roots)
}
