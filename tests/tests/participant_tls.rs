//! Encrypted calls to participants: who is believed, who may call, and what whoever is turned away is told to do.
//!
//! It needs `tccctl` and `tcc-ledgerd`: `make test` builds them first.

use jiff::SignedDuration;
use std::{path::Path, sync::Arc};
use tcc_coordinator::config::{IdentityFiles, ParticipantConfig};
use tcc_core::{
    AccountId, Amount, Currency, Descriptor, OnMaturity, Operation, Outcome, Timestamp, Transaction,
    descriptor::DEBIT,
};
use tcc_participant::{
    Call, Participant as _, Remote, Server, Tls,
    remote::{Certificate, Options},
    serve::{Running, Served, start},
};
use tcc_proto::v1::Phase;
use tcc_tests::{
    Coordinator, System, alice_and_bob,
    caller::new_transaction,
    connect,
    examples::{SEATS, seats::Seats},
    hold,
    memory::Memory,
    parties::{self, call, credit, debit, due_in, immediate},
    process::{Tccd, find_program},
    reason,
    secure::{Authority, Known},
    until,
};
use tokio::process::Command;

/// Files of whoever calls and whoever is called.
struct Papers {
    /// Of participants.
    authority: Authority,
    /// Of those that may call.
    callers: Authority,
    known: Known,
}

impl Papers {
    fn new() -> Self {
        let (authority, callers) = (Authority::new(), Authority::new());
        let known = Known::new();
        known.write("ca.pem", &authority.pem);
        known.write("other-ca.pem", &callers.pem);
        let (certificate, key) = callers.certificate(&["tccd"]);
        known.write("client.pem", &certificate);
        known.write("client.key", &key);
        Self { authority, callers, known }
    }

    /// A server's side, of a participant that is called by this name.
    fn tls(&self, name: &str, asks_for_certificates: bool) -> Tls {
        let issued = self.authority.certificate(&[name]);
        let files = self.known.certify(&issued, asks_for_certificates.then_some(&self.callers));
        Tls::read(&files.certificate, &files.key, files.client_ca.as_deref()).unwrap()
    }

    /// A caller's side.
    fn options(&self, certificate: Option<(String, String)>) -> Options {
        Options {
            may_veto: true,
            ca: Some(self.authority.pem.clone()),
            identity: certificate.map(|(chain, key)| Certificate { chain, key }),
            ..Options::LIKELY
        }
    }

    fn identity(&self) -> IdentityFiles {
        IdentityFiles { certificate: self.known.path("client.pem"), key: self.known.path("client.key") }
    }
}

async fn memory(tls: Option<&Tls>) -> Running {
    start(Memory::new(None) as Arc<dyn Served>, "127.0.0.1:0", tls).await.unwrap()
}

/// What a Try of a new transaction comes to.
async fn tried(address: &str, options: &Options) -> Outcome {
    let remote = Remote::start("memory", address, options).unwrap();
    let account = |id| AccountId::parse(id).unwrap();
    let (amount, gold) = (Amount::new(1).unwrap(), Currency::parse("GOLD").unwrap());
    let due_at = Timestamp::UNIX_EPOCH;
    let hold = Descriptor::hold(account("alice"), account("bob"), amount, gold, due_at, OnMaturity::Confirm);
    let transaction = Arc::new(Transaction::new(new_transaction(), hold));
    let call = Call { operation: Operation::Try, transaction, branches: vec![DEBIT] };
    remote.call(call).await.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_turned_away_over_tls_is_told_what_to_do() {
    let papers = Papers::new();
    let one_sided = memory(Some(&papers.tls("127.0.0.1", false))).await;
    let both_sided = memory(Some(&papers.tls("127.0.0.1", true))).await;
    let misnamed = memory(Some(&papers.tls("seats.test", false))).await;
    let plain = memory(None).await;
    let (own, stranger) = (papers.callers.certificate(&["tccd"]), Authority::new().certificate(&["tccd"]));
    let believing_others = Options { ca: Some(papers.callers.pem.clone()), ..papers.options(None) };

    assert_eq!(tried(&one_sided.url(), &papers.options(None)).await, Outcome::Done);
    assert_eq!(tried(&both_sided.url(), &papers.options(Some(own.clone()))).await, Outcome::Done);
    for (address, options, advice) in [
        (one_sided.url(), believing_others, "name the authority of its certificate"),
        (misnamed.url(), papers.options(None), "call it by a name that its certificate has"),
        (both_sided.url(), papers.options(None), "show it a certificate"),
        // Of an authority that it knows, if it came to say so before it hung up.
        (both_sided.url(), papers.options(Some(stranger)), "show it a certificate"),
        (plain.url().replace("http:", "https:"), papers.options(None), "does it speak TLS there?"),
    ] {
        let outcome = tried(&address, &options).await;

        assert!(matches!(&outcome, Outcome::Unknown(why) if why.contains(advice)), "{advice}: {outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_with_a_certificate_calls_a_participant_that_asks_for_one() {
    let papers = Papers::new();
    let mut system = System::start().await;
    let database = parties::url(&system, "seats");
    connect(&system.cluster.url()).await.batch_execute("CREATE DATABASE seats").await.unwrap();
    connect(&database).await.batch_execute(SEATS).await.unwrap();
    let server = Server::new("seats", &database).unwrap().listen("127.0.0.1:0");
    let seats = server.tls(papers.tls("127.0.0.1", true)).start(Seats).await.unwrap();
    system.config.participants = vec![ParticipantConfig {
        may_veto: true,
        ca: Some(papers.known.path("ca.pem")),
        ..ParticipantConfig::new("seats", &seats.url())
    }];
    assert!(seats.url().starts_with("https://"));

    // Without one it is not called, and nothing is done.
    let Coordinator { running, mut client } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let branches = || vec![debit(&alice, 10), credit(&bob, 10), call("seats", "seat-1")];
    let refused = client.begin(&immediate(branches())).await.unwrap_err();
    assert_eq!(reason(&refused), "PARTICIPANT_UNAVAILABLE");
    assert_eq!(client.balances(&alice).await, (10_000, 0));
    running.stop().cancel();
    running.ended().await.unwrap();

    system.config.identity = Some(papers.identity());
    let Coordinator { mut client, .. } = system.coordinator().await;
    client.until_reachable(&["seats"]).await;
    let sold = due_in(SignedDuration::from_secs(1), branches());
    client.begin(&sold).await.unwrap();

    assert_eq!(client.end_of(&sold.id).await.phase(), Phase::Confirmed);
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((9_990, 0), (10, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_out_of_process_serves_over_tls_whoever_shows_a_certificate() {
    let papers = Papers::new();
    let mut system = System::start().await;
    papers.tls("127.0.0.1", true);
    let file = |name: &str| papers.known.path(name);
    let [certificate, key, callers] =
        ["server.pem", "server.key", "clients.pem"].map(|name| file(name).display().to_string());
    let flags = ["--certificate", &certificate, "--key", &key, "--client-ca", &callers];
    let ledger = Tccd::ledgerd_with(&system.config, "shard-1", &flags).await.unwrap();
    ledger.url().clone_into(&mut system.config.shards[1].address);
    system.config.shards[1].ca = Some(file("ca.pem"));

    let Coordinator { running, mut client } = system.coordinator().await;
    let (alice, bob) = alice_and_bob(&mut client).await;
    let refused = client.create(&hold(&alice, &bob, 10)).await.unwrap_err();
    assert_eq!(reason(&refused), "SHARD_UNAVAILABLE", "it shows no certificate");
    running.stop().cancel();
    running.ended().await.unwrap();

    system.config.identity = Some(papers.identity());
    let Coordinator { mut client, .. } = system.coordinator().await;
    let paid = hold(&alice, &bob, 10);
    until("the hold is taken", || {
        let (mut client, request) = (client.clone(), paid.clone());
        async move { client.create(&request).await.is_ok() }
    })
    .await;

    assert_eq!(client.confirm(&paid.id).await.unwrap().phase(), Phase::Confirmed);
    assert_eq!((client.balances(&alice).await, client.balances(&bob).await), ((9_990, 0), (10, 0)));
    client.audit_is_clean().await;
}

/// The exit code, and what it says, good or bad.
async fn verify(address: &str, files: &[(&str, &Path)]) -> (i32, String) {
    let mut command = Command::new(find_program("tccctl").unwrap());
    command.args(["participants", "verify", address, "--payload", "unit-%n", "--schedules", "5"]);
    for (option, file) in files {
        command.arg(option).arg(file);
    }
    let output = command.output().await.unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.code().unwrap(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn tccctl_verifies_a_participant_over_tls() {
    let papers = Papers::new();
    let memory = memory(Some(&papers.tls("127.0.0.1", true))).await;
    let file = |name: &str| papers.known.path(name);
    let (ca, other, certificate, key) =
        (file("ca.pem"), file("other-ca.pem"), file("client.pem"), file("client.key"));
    let shown = [("--certificate", certificate.as_path()), ("--key", key.as_path())];

    let right = verify(&memory.url(), &[&[("--ca", ca.as_path())][..], &shown].concat()).await;
    let unbelieved = verify(&memory.url(), &[&[("--ca", other.as_path())][..], &shown].concat()).await;
    let nameless = verify(&memory.url(), &[("--ca", &ca)]).await;
    let keyless = verify(&memory.url(), &[("--ca", &ca), ("--certificate", &certificate)]).await;
    let in_the_clear = verify(&memory.url().replace("https", "http"), &[("--ca", &ca)]).await;

    assert_eq!(right.0, 0, "{}", right.1);
    for (asked, exit, words) in [
        (unbelieved, 4, "name the authority of its certificate"),
        (nameless, 4, "show it a certificate"),
        (keyless, 2, "--certificate and --key go together"),
        (in_the_clear, 2, "use https"),
    ] {
        assert_eq!(asked.0, exit, "{words}: {}", asked.1);
        assert!(asked.1.contains(words), "{words}: {}", asked.1);
    }
}
