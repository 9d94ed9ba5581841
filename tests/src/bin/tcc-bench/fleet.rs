//! The load generator's side of the API: connections, accounts, and requests drawn by chance.
//!
//! All calls are plain unary gRPC, each with its own id, as many services would send them. Accounts are spread evenly over
//! the shards, and payer and payee of a hold always live on different ones, since that is what tcc is for.

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use std::{sync::Arc, time::Duration};
use tcc_core::{AccountId, Timestamp, bucket_of};
use tcc_proto::v1::{
    self, hold_service_client::HoldServiceClient, ledger_service_client::LedgerServiceClient,
    operator_service_client::OperatorServiceClient,
};
use tonic::{
    Request, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

/// The currency of the bench.
pub const CURRENCY: &str = "GOLD";
/// What each account gets: enough for any run.
pub const FUNDS: i64 = 1_000_000_000;
/// So many accounts are opened at a time.
const OPENERS: usize = 256;

/// A connection over which each call shows who asks.
pub type Wire = InterceptedService<Channel, Shown>;

/// What each call shows: an API key, or nothing.
#[derive(Clone)]
pub struct Shown(Option<AsciiMetadataValue>);

impl Interceptor for Shown {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("authorization", key.clone());
        }
        Ok(request)
    }
}

/// Connections to one tccd. Clones share them.
#[derive(Clone)]
pub struct Fleet {
    channels: Vec<Channel>,
    shown: Shown,
}

/// Accounts by the shard that they live on; each shard has as many. Clones share them.
#[derive(Clone)]
pub struct Accounts(pub Arc<[Vec<String>]>);

/// Where a random payee comes from.
#[derive(Clone)]
pub enum Payees {
    /// Any account of another shard.
    Any,
    /// One account for all holds.
    One {
        /// Its id.
        id: String,
        /// The shard that it lives on.
        shard: usize,
    },
}

impl Fleet {
    /// Opens so many connections, over which an API key is shown if there is one.
    ///
    /// # Errors
    ///
    /// If tccd does not answer.
    pub async fn connect(url: &str, connections: u32, key: Option<&str>) -> anyhow::Result<Self> {
        let mut channels = Vec::new();
        for _ in 0..connections {
            let endpoint = Endpoint::from_shared(url.to_owned()).context("reading tccd's address")?;
            channels.push(endpoint.tcp_nodelay(true).connect().await.context("connecting to tccd")?);
        }
        let key = key.map(|key| format!("Bearer {key}").parse()).transpose().context("an API key")?;
        Ok(Self { channels, shown: Shown(key) })
    }

    /// A client of holds for a caller; callers share the connections evenly.
    #[must_use]
    pub fn holds(&self, caller: usize) -> HoldServiceClient<Wire> {
        HoldServiceClient::new(self.wire(caller))
    }

    /// A client of the operator's view.
    #[must_use]
    pub fn operator(&self) -> OperatorServiceClient<Wire> {
        OperatorServiceClient::new(self.wire(0))
    }

    /// Opens accounts and issues [`FUNDS`] to each.
    ///
    /// # Errors
    ///
    /// If tccd refuses or does not answer.
    pub async fn open(&self, accounts: &Accounts, opened: impl Fn()) -> anyhow::Result<()> {
        let opening = accounts.0.iter().flatten().enumerate().map(|(n, id)| self.open_one(n, id));
        let mut opening = futures::stream::iter(opening).buffer_unordered(OPENERS);
        while opening.try_next().await?.is_some() {
            opened();
        }
        Ok(())
    }

    async fn open_one(&self, caller: usize, id: &str) -> anyhow::Result<()> {
        let mut ledger = LedgerServiceClient::new(self.wire(caller));
        let account = v1::CreateAccountRequest { id: id.to_owned(), currency: CURRENCY.to_owned() };
        ledger.create_account(account).await.with_context(|| format!("opening account {id}"))?;
        let amount = Some(v1::Amount { value: FUNDS, currency: CURRENCY.to_owned() });
        let issue = v1::IssueRequest { id: Uuid::now_v7().to_string(), account: id.to_owned(), amount };
        ledger.issue(issue).await.with_context(|| format!("issuing to account {id}"))?;
        Ok(())
    }

    /// Lets the auditor look at everything. Answers how many postings it read.
    ///
    /// # Errors
    ///
    /// If it finds anything, or does not come to its end.
    pub async fn audit(&self, read: impl Fn(u64)) -> anyhow::Result<i64> {
        use v1::run_audit_response::Event;
        let response =
            self.operator().run_audit(v1::RunAuditRequest {}).await.context("starting the audit")?;
        let (mut stream, mut first) = (response.into_inner(), None);
        while let Some(message) = stream.message().await.context("auditing")? {
            match message.event {
                Some(Event::Progress(progress)) => read(progress.done.unsigned_abs()),
                Some(Event::Finding(finding)) => first = first.or(Some(finding)),
                Some(Event::Summary(v1::AuditSummary { findings: 0, postings, .. })) => return Ok(postings),
                Some(Event::Summary(summary)) => {
                    bail!("the auditor has {} findings, the first is {first:?}", summary.findings)
                }
                None => {}
            }
        }
        bail!("the audit ended without a summary")
    }

    fn wire(&self, caller: usize) -> Wire {
        let channel = self.channels[caller % self.channels.len()].clone();
        InterceptedService::new(channel, self.shown.clone())
    }
}

impl Accounts {
    /// So many accounts for so many shards, whose map is the one that a coordinator writes when it first starts.
    #[must_use]
    pub fn spread(total: u32, shards: usize) -> Self {
        let each = (total as usize).div_ceil(shards);
        let mut by_shard = vec![Vec::with_capacity(each); shards];
        for n in 0_u64.. {
            let id = format!("player-{n:08}");
            let account = AccountId::parse(&id).expect("the form of an id");
            let shard = &mut by_shard[usize::from(bucket_of(&account)) % shards];
            if shard.len() < each {
                shard.push(id);
            }
            if by_shard.iter().all(|shard| shard.len() == each) {
                break;
            }
        }
        Self(by_shard.into())
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(Vec::len).sum::<usize>() as u64
    }

    /// A hold between two accounts of different shards.
    #[must_use]
    pub fn hold(&self, chance: &mut Chance, payees: &Payees, due_at: Timestamp) -> v1::CreateHoldRequest {
        let shards = self.0.len();
        let another = |chance: &mut Chance, shard| (shard + 1 + chance.below(shards - 1)) % shards;
        let (payer, payee) = match payees {
            Payees::Any => {
                let payer = chance.below(shards);
                let payee = another(chance, payer);
                (payer, self.pick(chance, payee).to_owned())
            }
            Payees::One { id, shard } => (another(chance, *shard), id.clone()),
        };
        v1::CreateHoldRequest {
            id: Uuid::now_v7().to_string(),
            payer: self.pick(chance, payer).to_owned(),
            payee,
            amount: Some(v1::Amount { value: 1 + chance.below(100) as i64, currency: CURRENCY.to_owned() }),
            due_at: Some(prost_types::Timestamp {
                seconds: due_at.as_second(),
                nanos: due_at.subsec_nanosecond(),
            }),
            on_maturity: v1::OnMaturity::Confirm.into(),
            ..Default::default()
        }
    }

    fn pick(&self, chance: &mut Chance, shard: usize) -> &str {
        &self.0[shard][chance.below(self.0[shard].len())]
    }
}

/// Cheap random numbers (SplitMix64), the same in each run.
#[derive(Clone)]
pub struct Chance(u64);

impl Chance {
    /// A sequence of its own for each seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }
}

/// A time so far from now.
#[must_use]
pub fn from_now(delay: Duration) -> Timestamp {
    Timestamp::now() + delay
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payer_and_payee_live_on_different_shards() {
        let accounts = Accounts::spread(40, 4);
        let shard = |id: &str| accounts.0.iter().position(|own| own.iter().any(|own| own == id)).unwrap();
        let one = Payees::One { id: accounts.0[1][0].clone(), shard: 1 };
        let mut chance = Chance::new(1);

        for payees in [Payees::Any, one] {
            for _ in 0..200 {
                let hold = accounts.hold(&mut chance, &payees, Timestamp::UNIX_EPOCH);

                assert_ne!(shard(&hold.payer), shard(&hold.payee));
            }
        }
    }
}
