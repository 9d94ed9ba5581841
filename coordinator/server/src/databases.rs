//! How the databases are reached: as whom, with which password, over which kind of connection.
//!
//! One login can do everything. Or there are three, each with the rights of its role (`migrations/roles`): the engine does
//! what the protocol does, the maintainer makes and drops partitions, the migrator changes tables at the start.

use crate::{
    config::{Login, PostgresConfig, PostgresTls},
    tls,
    watched::WatchError,
};
use std::path::Path;
use tcc_participant::Postgres;
use tokio_postgres::config::Host;

/// The SQL that makes tcc's roles.
pub const ROLES: &str = include_str!("../../../migrations/roles/roles.sql");

/// The ways to one database.
#[derive(Clone)]
pub struct Database {
    /// What the protocol does.
    pub engine: Postgres,
    /// Makes and drops partitions.
    pub maintainer: Postgres,
    /// Creates and changes tables.
    pub migrator: Postgres,
}

/// What all databases have in common.
pub struct Logins {
    encrypted: PostgresTls,
    tls: Option<rustls::ClientConfig>,
    password: Option<String>,
    maintainer: Option<User>,
    migrator: Option<User>,
}

struct User {
    name: String,
    password: Option<String>,
}

impl Logins {
    /// Reads the files that a configuration names.
    ///
    /// # Errors
    ///
    /// [`WatchError`].
    pub fn read(config: &PostgresConfig) -> Result<Self, WatchError> {
        let tls = match config.tls {
            PostgresTls::Never => None,
            PostgresTls::Remote | PostgresTls::Always => Some(tls::client(config.ca.as_deref())?),
        };
        let user = |login: &Login| {
            let password = login.password_file.as_deref().map(password).transpose()?;
            Ok(User { name: login.user.clone(), password })
        };
        Ok(Self {
            encrypted: config.tls,
            tls,
            password: config.password_file.as_deref().map(password).transpose()?,
            maintainer: config.maintainer.as_ref().map(user).transpose()?,
            migrator: config.migrator.as_ref().map(user).transpose()?,
        })
    }

    /// The ways to the database of a url.
    ///
    /// # Errors
    ///
    /// If the url cannot be read.
    pub fn to(&self, url: &str) -> Result<Database, tokio_postgres::Error> {
        let mut config: tokio_postgres::Config = url.parse()?;
        if let Some(password) = &self.password {
            config.password(password);
        }
        let is_encrypted = match self.encrypted {
            PostgresTls::Never => false,
            PostgresTls::Always => true,
            PostgresTls::Remote => !is_local(&config),
        };
        let engine = match &self.tls {
            Some(tls) if is_encrypted => Postgres::encrypted(config, tls.clone()),
            _ => config.into(),
        };
        let log_in_as = |user: &Option<User>, otherwise: &Postgres| match user {
            Some(user) => otherwise.log_in_as(&user.name, user.password.as_deref()),
            None => otherwise.clone(),
        };
        let maintainer = log_in_as(&self.maintainer, &engine);
        let migrator = log_in_as(&self.migrator, &maintainer);
        Ok(Database { engine, maintainer, migrator })
    }
}

/// Whether nothing leaves this machine.
fn is_local(config: &tokio_postgres::Config) -> bool {
    let is_local = |host: &Host| match host {
        Host::Tcp(name) => {
            name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        }
        Host::Unix(_) => true,
    };
    config.get_hosts().iter().all(is_local)
        && config.get_hostaddrs().iter().all(std::net::IpAddr::is_loopback)
}

/// The first line of a file.
fn password(path: &Path) -> Result<String, WatchError> {
    let read =
        |error: std::io::Error| WatchError::Read { path: path.display().to_string(), why: error.to_string() };
    let text = std::fs::read_to_string(path).map_err(read)?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(WatchError::content(path, "there is no password in its first line")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_on_this_machine_is_local() {
        for (url, expected) in [
            ("host=/run/postgresql", true),
            ("host=localhost", true),
            ("host=127.0.0.1 port=6000", true),
            ("postgresql://[::1]/tcc", true),
            ("host=db.internal", false),
            ("host=10.0.0.1", false),
            ("host=localhost,db.internal", false),
            ("host=localhost hostaddr=10.0.0.1", false),
        ] {
            assert_eq!(is_local(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
