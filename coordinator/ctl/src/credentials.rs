//! Who asks: an API key or token, or a client certificate.
//!
//! Secrets come from files or the environment and never from the command line, which everybody on the machine can read. They
//! are not printed. What they may be sent over is the client crate's to say.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
};
use tcc_client::Connect;

/// The variable that may hold an API key or token.
const TOKEN: &str = "TCC_TOKEN";
/// One of two files alone is of no use.
const PAIR: &str = "--certificate and --key go together";

/// What there is to show to a server, and what to verify the server with.
pub struct Credentials {
    ca: Option<Vec<u8>>,
    /// A certificate and its key.
    certificate: Option<(Vec<u8>, Vec<u8>)>,
    token: Option<String>,
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
        let ca = ca.map(|path| read("--ca", &path)).transpose()?;
        let certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => {
                Some((read("--certificate", &certificate)?, read("--key", &key)?))
            }
            (None, None) => None,
            _ => return Err(PAIR.to_owned()),
        };
        let token = match token_file {
            Some(path) => Some(String::from_utf8_lossy(&read("--token-file", &path)?).into_owned()),
            None => env::var(TOKEN).ok(),
        };
        Ok(Self { ca, certificate, token: token.filter(|token| !token.trim().is_empty()) })
    }

    /// Shows them on the way to a server. To one that believes everybody it is the name of whoever is logged in, for the record of
    /// actions.
    pub fn shown_to(&self, mut connect: Connect) -> Connect {
        if let Some(ca) = &self.ca {
            connect = connect.authority(ca);
        }
        if let Some((certificate, key)) = &self.certificate {
            connect = connect.certificate(certificate, key);
        }
        match (&self.token, user()) {
            (Some(token), _) => connect.api_key(token),
            (None, Some(user)) => connect.named(&user),
            (None, None) => connect,
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

/// Who is logged in.
fn user() -> Option<String> {
    let user = env::var("USER").or_else(|_| env::var("LOGNAME")).ok()?;
    // What the server would not take as a name is not one.
    let is_name = (1..=64).contains(&user.len()) && user.bytes().all(|byte| byte.is_ascii_graphic());
    is_name.then_some(user)
}

fn read(option: &str, path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{option}: cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Session;

    fn with_token(token: &str) -> Credentials {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, token).unwrap();
        Credentials::read(None, Some(path), None, None).unwrap()
    }

    fn to(server: &str, credentials: &Credentials) -> Result<Session, String> {
        Session::new(&server.parse().unwrap(), credentials, None)
    }

    #[test]
    fn a_token_goes_over_encrypted_connections_or_stays_on_this_machine() {
        let credentials = with_token("secret\n");

        let session = to("http://127.0.0.1:7070", &credentials).unwrap();
        assert_eq!(session.request(()).metadata().get("authorization").unwrap(), "Bearer secret");
        assert!(to("http://[::1]:7070", &credentials).is_ok());
        let open = to("http://tcc.internal:7070/", &credentials).err().unwrap();
        let expected =
            "an API key or token sent to http://tcc.internal:7070 could be read on the way; use https";
        assert_eq!(open, expected);
    }

    #[test]
    fn what_cannot_be_shown_is_told_without_a_secret() {
        let broken = to("http://localhost:1", &with_token("canary\nof two lines")).err().unwrap();
        let unencrypted = Credentials { ca: Some(b"pem".to_vec()), certificate: None, token: None };
        let unencrypted = to("http://localhost:1", &unencrypted).err().unwrap();
        let nonsense = Credentials {
            ca: None,
            certificate: Some((b"canary".to_vec(), b"canary".to_vec())),
            token: None,
        };
        let nonsense = to("https://localhost:1", &nonsense).err().unwrap();

        assert_eq!(broken, "the API key or token has characters that none has");
        assert!(unencrypted.starts_with("certificates need an encrypted connection"), "{unencrypted}");
        assert!(nonsense.starts_with("--ca, --certificate or --key: "), "{nonsense}");
        for text in [broken, nonsense, format!("{:?}", with_token("canary"))] {
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
