//! Who asks: an API key or token, or a client certificate.
//!
//! Secrets come from files or the environment and never from the command line, which everybody on the machine can read. They
//! are not printed, and are sent over encrypted connections only, or on this machine.

use std::{env, fmt, fs, path::Path, path::PathBuf};
use tonic::{
    metadata::AsciiMetadataValue,
    transport::{Certificate, ClientTlsConfig, Identity},
};

/// The variable that may hold an API key or token.
const TOKEN: &str = "TCC_TOKEN";
/// One of two files alone is of no use.
const PAIR: &str = "--certificate and --key go together";

/// What there is to show to a server, and what to verify the server with.
pub struct Credentials {
    ca: Option<Certificate>,
    identity: Option<Identity>,
    authorization: Option<AsciiMetadataValue>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads the files, and the environment.
    ///
    /// # Errors
    ///
    /// A sentence that names the option, and repeats no secret.
    pub fn read(
        ca: Option<PathBuf>,
        token_file: Option<PathBuf>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> Result<Self, String> {
        let ca = ca.map(|path| read("--ca", &path)).transpose()?.map(Certificate::from_pem);
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => {
                Some(Identity::from_pem(read("--certificate", &certificate)?, read("--key", &key)?))
            }
            (None, None) => None,
            _ => return Err(PAIR.to_owned()),
        };
        let token = match token_file {
            Some(path) => Some(String::from_utf8_lossy(&read("--token-file", &path)?).into_owned()),
            None => env::var(TOKEN).ok(),
        };
        let authorization =
            token.filter(|token| !token.trim().is_empty()).map(|token| bearer(&token)).transpose()?;
        Ok(Self { ca, identity, authorization })
    }

    /// The metadata that goes with each call.
    pub fn authorization(&self) -> Option<&AsciiMetadataValue> {
        self.authorization.as_ref()
    }

    /// Whether there is something that only TLS has a use for.
    pub fn are_for_tls(&self) -> bool {
        self.ca.is_some() || self.identity.is_some()
    }

    /// How to verify the server, and what to show it.
    pub fn tls(&self) -> ClientTlsConfig {
        let tls = match &self.ca {
            Some(ca) => ClientTlsConfig::new().ca_certificate(ca.clone()),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        match &self.identity {
            Some(identity) => tls.identity(identity.clone()),
            None => tls,
        }
    }
}

/// What there is to verify a participant with, and to show it: the files' contents, PEM.
pub struct TlsFiles {
    /// Authorities.
    pub ca: Option<String>,
    /// A certificate and its key.
    pub identity: Option<tcc_participant::remote::Certificate>,
}

impl TlsFiles {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// As [`Credentials::read`].
    pub fn read(
        ca: Option<PathBuf>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> Result<Self, String> {
        let pem = |option: &str, path: &Path| {
            String::from_utf8(read(option, path)?)
                .map_err(|_| format!("{option}: {} is no PEM file", path.display()))
        };
        let identity = match (certificate, key) {
            (Some(chain), Some(key)) => Some(tcc_participant::remote::Certificate {
                chain: pem("--certificate", &chain)?,
                key: pem("--key", &key)?,
            }),
            (None, None) => None,
            _ => return Err(PAIR.to_owned()),
        };
        Ok(Self { ca: ca.map(|path| pem("--ca", &path)).transpose()?, identity })
    }
}

fn bearer(token: &str) -> Result<AsciiMetadataValue, String> {
    let value = format!("Bearer {}", token.trim()).parse();
    let mut value: AsciiMetadataValue =
        value.map_err(|_| "the API key or token has characters that none has".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

fn read(option: &str, path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{option}: cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Session;

    fn with_token(token: &str) -> Result<Credentials, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, token).unwrap();
        Credentials::read(None, Some(path), None, None)
    }

    #[test]
    fn a_token_goes_over_encrypted_connections_or_stays_on_this_machine() {
        let credentials = with_token("secret\n").unwrap();

        assert_eq!(credentials.authorization().unwrap().to_str().unwrap(), "Bearer secret");
        for (server, expected) in [
            ("http://127.0.0.1:7070", true),
            ("http://[::1]:7070", true),
            ("http://localhost:7070", true),
            ("http://tcc.internal:7070", false),
            ("http://10.0.0.1:7070", false),
        ] {
            let session = Session::new(server.parse().unwrap(), &credentials, None);

            assert_eq!(session.is_ok(), expected, "{server}");
        }
    }

    #[test]
    fn a_secret_is_in_no_message() {
        let credentials = with_token("canary\n").unwrap();
        let broken = with_token("canary\nof two lines").unwrap_err();

        for text in [format!("{credentials:?}"), format!("{:?}", credentials.authorization()), broken] {
            assert!(!text.contains("canary"), "{text}");
        }
    }

    #[test]
    fn a_certificate_needs_its_key_and_a_file_that_is_missing_is_named() {
        let alone = Credentials::read(None, None, Some("a.pem".into()), None).unwrap_err();
        let missing = Credentials::read(Some("/nonexistent.pem".into()), None, None, None).unwrap_err();

        assert_eq!(alone, "--certificate and --key go together");
        assert!(missing.starts_with("--ca: cannot read /nonexistent.pem"), "{missing}");
    }
}
