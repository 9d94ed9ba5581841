//! Participants that are no shards: who is registered, and the connections to them.
//!
//! What stands in the configuration is written into the coordinator's database when an instance starts, what operators add
//! stands there alone. Every instance reads it, and calls whoever is there: so all of them know the same participants within
//! seconds. A participant that is removed, or that another instance has added a moment ago, is one that cannot be reached:
//! what needs it waits.

use crate::{
    engine::{Participants, participants::Terms},
    serve::Between,
    store::{
        Store, StoreError,
        participants::{Registered, Registration},
    },
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tcc_core::ParticipantName;
use tcc_participant::{
    Remote,
    remote::{self, Certificate, InvalidAddress, Options},
};
use tokio_util::sync::CancellationToken;

/// How often the table is read.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who is registered, as this instance has last read it. Clones share it.
#[derive(Clone, Default)]
pub struct Registry {
    known: Arc<Mutex<HashMap<ParticipantName, Entry>>>,
}

/// A participant that is registered, and the connection to it.
#[derive(Clone)]
pub struct Entry {
    /// How it is registered.
    pub registered: Registered,
    /// The connection; `None` if its address or certificate cannot be used, which the log tells.
    pub remote: Option<Remote>,
}

impl Registry {
    /// Those who are registered, for somebody who calls none of them.
    #[must_use]
    pub fn listed(all: Vec<Registered>) -> Self {
        let entry = |registered: Registered| {
            (registered.registration.name.clone(), Entry { registered, remote: None })
        };
        Self { known: Arc::new(Mutex::new(all.into_iter().map(entry).collect())) }
    }

    /// Who is registered, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.known.lock().expect("no holder panics").values().cloned().collect();
        all.sort_by(|one, other| one.registered.registration.name.cmp(&other.registered.registration.name));
        all
    }
}

/// Makes sure that a participant can be called as it is registered, as far as that can be known without calling it.
///
/// # Errors
///
/// [`InvalidAddress`].
pub fn check(registration: &Registration, identity: Option<&Certificate>) -> Result<(), InvalidAddress> {
    remote::check(&registration.address, &options(registration, identity))
}

fn options(registration: &Registration, identity: Option<&Certificate>) -> Options {
    let Registration { ca, may_veto, deadline, requests, .. } = registration;
    Options {
        deadline: *deadline,
        requests: usize::from(*requests),
        may_veto: *may_veto,
        ca: Some(ca.clone()).filter(|ca| !ca.is_empty()),
        identity: identity.cloned(),
        ..Options::LIKELY
    }
}

/// Reads who is registered, and calls them.
pub struct Keeper {
    /// Where it is written.
    pub store: Store,
    /// Who is called.
    pub participants: Participants,
    /// What the tests put between.
    pub between: Between,
    /// What this instance shows to participants.
    pub identity: Option<Certificate>,
    /// What is known of it.
    pub registry: Registry,
}

impl Keeper {
    /// Reads again and again, until asked to stop.
    pub async fn keep(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
            if let Err(error) = self.read().await {
                tracing::debug!(%error, "cannot read who is registered; trying again");
            }
        }
    }

    /// Reads once.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn read(&self) -> Result<(), StoreError> {
        let all = self.store.registered().await?;
        let mut known = self.registry.known.lock().expect("no holder panics");
        let gone: Vec<ParticipantName> = known
            .keys()
            .filter(|name| !all.iter().any(|one| one.registration.name == **name))
            .cloned()
            .collect();
        for name in gone {
            tracing::warn!(participant = %name, "a participant is registered no more");
            known.remove(&name);
            self.participants.unregister(&name);
        }
        for one in all {
            let name = one.registration.name.clone();
            let terms = Terms { may_veto: one.registration.may_veto, is_drained: one.is_drained };
            match known.get_mut(&name) {
                Some(entry) if entry.registered.registration == one.registration => {
                    if entry.registered != one {
                        self.participants.set_terms(&name, terms);
                        entry.registered = one;
                    }
                }
                _ => {
                    let options = options(&one.registration, self.identity.as_ref());
                    let remote = Remote::start(name.as_str(), &one.registration.address, &options);
                    let remote = remote.inspect_err(
                        |error| tracing::error!(participant = %name, %error, "a participant cannot be called"),
                    );
                    match &remote {
                        Ok(remote) => {
                            tracing::info!(participant = %name, address = one.registration.address, "a participant is registered");
                            self.participants.register(
                                &name,
                                (self.between)(Arc::new(remote.clone())),
                                terms,
                            );
                        }
                        Err(_) => self.participants.unregister(&name),
                    }
                    known.insert(name, Entry { registered: one, remote: remote.ok() });
                }
            }
        }
        Ok(())
    }
}
