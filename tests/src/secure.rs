//! Authorities, identity providers, callers and servers that ask for them.
//!
//! Everything is made anew for each test: a certificate authority, keys of a provider, API keys, the file of callers. A
//! [`Caller`] shows what it has with each request, as an application does.

use crate::{Coordinator, System};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
    PKCS_RSA_SHA256, RsaKeySize,
};
use serde_json::{Value, json};
use std::{fs, path::PathBuf};
use tcc_coordinator::{
    auth::callers::new_key,
    config::{Auth, Config, Jwt, Tls},
    serve,
};
use tempfile::TempDir;
use tonic::{
    Request,
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};

/// The issuer of every token.
pub const ISSUER: &str = "https://login.test/";
/// Whom tokens are for.
pub const AUDIENCE: &str = "tcc";

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub pem: String,
}

impl Authority {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names are good names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key is made");
        let pem = params.self_signed(&key).expect("it signs itself").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for names, and its key, PEM.
    #[must_use]
    pub fn certificate(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let params = CertificateParams::new(names).expect("the names are good");
        let key = KeyPair::generate().expect("a key is made");
        let certificate = params.signed_by(&key, &self.issuer).expect("the authority signs");
        (certificate.pem(), key.serialize_pem())
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// A key of an identity provider.
pub struct Provider {
    key: EncodingKey,
    algorithm: Algorithm,
    id: String,
}

impl Provider {
    /// One that signs with an elliptic curve (ES256).
    #[must_use]
    pub fn new(id: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key is made");
        let key = EncodingKey::from_ec_der(&key.serialize_der());
        Self { key, algorithm: Algorithm::ES256, id: id.to_owned() }
    }

    /// One that signs with Ed25519.
    #[must_use]
    pub fn edwards(id: &str) -> Self {
        let with_public_half = KeyPair::generate_for(&PKCS_ED25519).expect("a key is made").serialize_der();
        // RFC 8410: version 1 has the private half alone, which is what signs.
        let alone = [&[0x30, 0x2e, 0x02, 0x01, 0x00], &with_public_half[5..48]].concat();
        let key = EncodingKey::from_ed_der(&alone);
        Self { key, algorithm: Algorithm::EdDSA, id: id.to_owned() }
    }

    /// One that signs with RSA (RS256).
    #[must_use]
    pub fn rsa(id: &str) -> Self {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key is made");
        // Within PKCS #8 the key itself (PKCS #1) stands behind 26 bytes.
        let key = EncodingKey::from_rsa_der(&key.serialize_der()[26..]);
        Self { key, algorithm: Algorithm::RS256, id: id.to_owned() }
    }

    /// Its public key (JWK).
    #[must_use]
    pub fn public(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).expect("it has a public key");
        jwk.common.key_id = Some(self.id.clone());
        serde_json::to_value(jwk).expect("a key is JSON")
    }

    /// A token with claims over the usual ones; null takes one away.
    #[must_use]
    pub fn token(&self, changes: Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.clone());
        self.sign(&header, changes)
    }

    /// As [`Provider::token`], with a header of one's own.
    #[must_use]
    pub fn sign(&self, header: &Header, changes: Value) -> String {
        jsonwebtoken::encode(header, &claims(changes), &self.key).expect("the token is signed")
    }
}

/// The usual claims, changed.
#[must_use]
pub fn claims(changes: Value) -> Value {
    let now = jsonwebtoken::get_current_timestamp();
    let mut claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "shop", "iat": now, "nbf": now, "exp": now + 600,
        "tcc_roles": ["application"], "tcc_accounts": ["*"],
    });
    let all = claims.as_object_mut().expect("claims are an object");
    for (name, value) in changes.as_object().cloned().unwrap_or_default() {
        if value.is_null() {
            all.remove(&name);
        } else {
            all.insert(name, value);
        }
    }
    claims
}

/// What a server knows of its callers: a folder with files.
pub struct Known {
    folder: TempDir,
    text: String,
}

impl Known {
    /// Nobody yet.
    #[must_use]
    pub fn new() -> Self {
        let known = Self { folder: tempfile::tempdir().expect("a folder is made"), text: String::new() };
        known.write("callers.toml", "");
        known
    }

    /// Adds a caller with these roles and accounts, and an API key, which is the answer.
    pub fn caller(&mut self, name: &str, roles: &[&str], accounts: &[&str]) -> String {
        let (key, hash) = new_key();
        self.add(&format!(
            "[[caller]]\nname = \"{name}\"\nroles = {roles:?}\naccounts = {accounts:?}\nkeys = [\"{hash}\"]\n"
        ));
        key
    }

    /// Adds a caller that is known by the name in its certificate.
    pub fn caller_with_certificate(&mut self, name: &str, roles: &[&str], certificate: &str) {
        self.add(&format!(
            "[[caller]]\nname = \"{name}\"\nroles = {roles:?}\naccounts = [\"*\"]\ncertificates = [\"{certificate}\"]\n"
        ));
    }

    /// Forgets all callers.
    pub fn clear(&mut self) {
        self.text.clear();
        self.write("callers.toml", "");
    }

    fn add(&mut self, text: &str) {
        self.text.push_str(text);
        self.write("callers.toml", &self.text);
    }

    /// Writes the provider's keys.
    pub fn trust(&self, providers: &[&Provider]) -> Jwt {
        let keys: Vec<Value> = providers.iter().map(|provider| provider.public()).collect();
        self.write("keys.json", &json!({ "keys": keys }).to_string());
        Jwt {
            issuer: ISSUER.into(),
            audience: AUDIENCE.into(),
            keys: self.path("keys.json").display().to_string(),
            algorithms: ["RS256", "ES256", "EdDSA"].map(str::to_owned).into(),
            ca: None,
            roles_claim: "tcc_roles".into(),
            accounts_claim: "tcc_accounts".into(),
        }
    }

    /// Writes the server's certificate.
    pub fn certify(&self, (certificate, key): &(String, String), clients: Option<&Authority>) -> Tls {
        self.write("server.pem", certificate);
        self.write("server.key", key);
        if let Some(clients) = clients {
            self.write("clients.pem", &clients.pem);
        }
        Tls {
            certificate: self.path("server.pem"),
            key: self.path("server.key"),
            client_ca: clients.map(|_| self.path("clients.pem")),
            require_client_certificate: false,
        }
    }

    /// Writes a file, as a whole: readers see the old one or the new one.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, text).and_then(|()| fs::rename(&new, self.path(name))).expect("the file is written");
    }

    /// Where a file is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The part of a configuration that names the callers.
    #[must_use]
    pub fn auth(&self) -> Auth {
        Auth { callers: Some(self.path("callers.toml")), jwt: None }
    }
}

impl Default for Known {
    fn default() -> Self {
        Self::new()
    }
}

/// A configuration for a system that asks who calls.
#[must_use]
pub fn config(system: &System, auth: Auth) -> Config {
    Config { insecure_dev: false, auth, ..system.config.clone() }
}

/// A coordinator with it; its client has no credentials.
pub async fn coordinator(config: &Config) -> serve::Running {
    serve::start(config).await.expect("the coordinator starts")
}

/// As [`coordinator`], with one that believes everybody on the same databases beside it: to open accounts and to look.
pub async fn beside(system: &System) -> Coordinator {
    system.coordinator().await
}

/// Somebody who asks, and what they show.
#[derive(Clone)]
pub struct Caller {
    /// The connection.
    pub channel: Channel,
    credential: Option<String>,
}

impl Caller {
    /// Without encryption, on loopback.
    pub async fn plain(address: std::net::SocketAddr, credential: Option<&str>) -> Self {
        let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
        let channel = endpoint.connect().await.expect("the coordinator listens");
        Self { channel, credential: credential.map(str::to_owned) }
    }

    /// Encrypted, trusting an authority, with a certificate of one's own or without.
    ///
    /// # Errors
    ///
    /// If the two do not agree.
    pub async fn encrypted(
        address: std::net::SocketAddr,
        trusts: &Authority,
        certificate: Option<&(String, String)>,
        credential: Option<&str>,
    ) -> Result<Self, tonic::transport::Error> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&trusts.pem))
            .domain_name("localhost");
        let tls = match certificate {
            Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
            None => tls,
        };
        let endpoint = Channel::from_shared(format!("https://{address}")).expect("an address");
        let channel = endpoint.tls_config(tls)?.connect().await?;
        Ok(Self { channel, credential: credential.map(str::to_owned) })
    }

    /// The same connection with another credential.
    #[must_use]
    pub fn with(&self, credential: &str) -> Self {
        Self { channel: self.channel.clone(), credential: Some(credential.to_owned()) }
    }

    /// A message with the credential.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(credential) = &self.credential {
            let value = format!("Bearer {credential}").parse().expect("a credential is ASCII");
            request.metadata_mut().insert("authorization", value);
        }
        request
    }

    /// Calls a method by its path with an empty message, and waits for the beginning of its answer.
    ///
    /// # Errors
    ///
    /// What the server says.
    pub async fn call(&self, path: &str) -> Result<(), tonic::Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let path = path.parse().expect("a path");
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let mut answers = grpc.server_streaming(self.request(()), path, codec).await?.into_inner();
        answers.message().await.map(drop)
    }
}
