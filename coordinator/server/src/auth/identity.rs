//! Who asks, and what that one may do.

use std::{collections::HashSet, str::FromStr, sync::Arc};
use tcc_core::AccountId;
use tonic::Request;

/// What a caller may do. A caller may have several roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Schedules, confirms and cancels holds of the accounts that it is responsible for, and reads those accounts.
    Application,
    /// Opens accounts, creates units, reads all books.
    LedgerAdmin,
    /// Looks after the coordinator: status, audit, shards that have lost commits. Reads all holds and books.
    Operator,
    /// Reads everything, changes nothing.
    Viewer,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Application, Self::LedgerAdmin, Self::Operator, Self::Viewer];

    /// As files and tokens name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::LedgerAdmin => "ledger_admin",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| role.name() == name).ok_or_else(|| UnknownRole(name.to_owned()))
    }
}

/// A role that there is not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no role {0:?}; roles are application, ledger_admin, operator and viewer")]
pub struct UnknownRole(String);

/// Which accounts an application is responsible for: ids, prefixes that end in `*`, or `*` for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    ids: HashSet<String>,
    prefixes: Vec<String>,
}

impl Accounts {
    /// All accounts.
    #[must_use]
    pub fn all() -> Self {
        Self { ids: HashSet::new(), prefixes: vec![String::new()] }
    }

    /// Whether it is responsible for all accounts, so that there is nothing to be looked up.
    #[must_use]
    pub fn are_all(&self) -> bool {
        self.prefixes.iter().any(String::is_empty)
    }

    /// Whether it is responsible for one.
    #[must_use]
    pub fn cover(&self, account: &AccountId) -> bool {
        let id = account.as_str();
        self.ids.contains(id) || self.prefixes.iter().any(|prefix| id.starts_with(prefix.as_str()))
    }
}

impl<S: AsRef<str>> FromIterator<S> for Accounts {
    fn from_iter<I: IntoIterator<Item = S>>(patterns: I) -> Self {
        let mut accounts = Self::default();
        for pattern in patterns {
            match pattern.as_ref().strip_suffix('*') {
                Some(prefix) => accounts.prefixes.push(prefix.to_owned()),
                None => drop(accounts.ids.insert(pattern.as_ref().to_owned())),
            }
        }
        accounts
    }
}

/// A caller that was recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name: its lane, and the space of its idempotency keys.
    pub caller: String,
    /// What it may do.
    pub roles: Vec<Role>,
    /// On which accounts, as an application.
    pub accounts: Accounts,
    /// How many transactions it may have open at a time, if that is not as usual; 0 for any number.
    pub open_transactions: Option<u32>,
}

impl Identity {
    /// Somebody who may do everything: whoever asks an insecure server.
    #[must_use]
    pub fn developer(caller: &str) -> Self {
        let (caller, roles) = (caller.to_owned(), Role::ALL.into());
        Self { caller, roles, accounts: Accounts::all(), open_transactions: None }
    }

    /// Whether it has a role.
    #[must_use]
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether it may give an account's money away, or take back what it wanted to give.
    #[must_use]
    pub fn may_spend(&self, account: &AccountId) -> bool {
        self.is(Role::Application) && self.accounts.cover(account)
    }

    /// Whether it may spend of every account, so that there is nothing to be looked up.
    #[must_use]
    pub fn may_spend_all(&self) -> bool {
        self.is(Role::Application) && self.accounts.are_all()
    }

    /// Whether it may see the transactions of a caller, other than holds: they are that one's own.
    #[must_use]
    pub fn may_see_of(&self, owner: &str) -> bool {
        (self.is(Role::Application) && self.caller == owner)
            || [Role::Operator, Role::Viewer].into_iter().any(|role| self.is(role))
    }

    /// Whether it may see an account and its holds.
    #[must_use]
    pub fn may_see(&self, account: &AccountId) -> bool {
        self.may_spend(account)
            || [Role::LedgerAdmin, Role::Operator, Role::Viewer].into_iter().any(|role| self.is(role))
    }
}

/// Who asks: the gate has put it there. A request that did not come through the gate may do nothing.
pub fn identity<T>(request: &Request<T>) -> Arc<Identity> {
    let nobody = || Identity {
        caller: String::new(),
        roles: Vec::new(),
        accounts: Accounts::default(),
        open_transactions: None,
    };
    request.extensions().get::<Arc<Identity>>().cloned().unwrap_or_else(|| Arc::new(nobody()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(id: &str) -> AccountId {
        AccountId::parse(id).unwrap()
    }

    #[test]
    fn a_pattern_is_an_id_or_a_prefix_that_ends_in_a_star() {
        let accounts: Accounts = ["alice", "user-*"].into_iter().collect();

        for (id, expected) in [
            ("alice", true),
            ("alice2", false),
            ("user-1", true),
            ("user-", true),
            ("user", false),
            ("xuser-1", false),
        ] {
            assert_eq!(accounts.cover(&account(id)), expected, "{id}");
        }
        assert!(!accounts.are_all());
        let all: Accounts = ["*"].into_iter().collect();
        assert!(all.are_all() && all.cover(&account("anything")));
        assert!(!Accounts::default().cover(&account("alice")), "nothing covers nothing");
    }

    #[test]
    fn only_an_application_spends_and_only_of_its_accounts() {
        let with = |roles: &[Role]| Identity {
            caller: "x".into(),
            roles: roles.to_vec(),
            accounts: ["alice"].into_iter().collect(),
            open_transactions: None,
        };
        let (alice, bob) = (account("alice"), account("bob"));

        let application = with(&[Role::Application]);
        assert!(application.may_spend(&alice) && application.may_see(&alice));
        assert!(!application.may_spend(&bob) && !application.may_see(&bob));
        for role in [Role::LedgerAdmin, Role::Operator, Role::Viewer] {
            let other = with(&[role]);
            assert!(!other.may_spend(&alice) && other.may_see(&bob), "{role:?}");
        }
        assert!(!with(&[]).may_see(&alice));
    }

    #[test]
    fn a_request_that_passed_no_gate_may_do_nothing() {
        let nobody = identity(&Request::new(()));

        assert!(nobody.roles.is_empty() && !nobody.may_see(&account("alice")));
    }
}
