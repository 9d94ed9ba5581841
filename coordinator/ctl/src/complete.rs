//! What a shell offers when somebody presses TAB: commands and options by themselves, shards, holds, plans, instances and contexts
//! as there are.
//!
//! The shell calls `tccctl` with the words so far. It asks the server that they, or the environment, name, for a second at most: if
//! there is no answer nothing is offered, and nothing is said, for whoever types has not asked for an error.

use crate::{
    args::{Cli, Global},
    attention::Kind,
    contexts::Contexts,
    session::Session,
};
use clap::{CommandFactory as _, FromArgMatches as _};
use clap_complete::engine::CompletionCandidate;
use std::{env, ffi::OsStr, rc::Rc, time::Duration};
use tcc_proto::v1::{
    self, operator_service_client::OperatorServiceClient, recovery_service_client::RecoveryServiceClient,
};
use tonic::{Status, transport::Channel};

/// Whoever waits for a completion does not wait long.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many are offered at most.
const MOST: i32 = 100;

/// The names of shards.
pub fn shards(current: &OsStr) -> Vec<CompletionCandidate> {
    let asked = ask(|channel, session| async move {
        let request = session.request(v1::GetStatusRequest {});
        let status = OperatorServiceClient::new(channel).get_status(request).await?;
        Ok(status.into_inner().shards.into_iter().map(|shard| (shard.name, String::new())).collect())
    });
    matching(current, asked)
}

/// Holds that need attention: others are too many.
pub fn holds(current: &OsStr) -> Vec<CompletionCandidate> {
    let kinds = [Kind::Retrying, Kind::Stuck, Kind::Parked, Kind::Paused];
    let attention = kinds.iter().map(|kind| kind.number()).collect();
    let asked = ask(|channel, session| async move {
        let request = v1::ListAttentionRequest { attention, page_size: MOST, ..Default::default() };
        let found = RecoveryServiceClient::new(channel).list_attention(session.request(request)).await?;
        let item = |item: v1::AttentionItem| (item.hold.unwrap_or_default().id, item.last_error);
        Ok(found.into_inner().items.into_iter().map(item).collect())
    });
    matching(current, asked)
}

/// The newest plans.
pub fn plans(current: &OsStr) -> Vec<CompletionCandidate> {
    let asked = ask(|channel, session| async move {
        let request = session.request(v1::ListPlansRequest { page_size: MOST });
        let found = RecoveryServiceClient::new(channel).list_plans(request).await?;
        Ok(found.into_inner().plans.into_iter().map(|plan| (plan.id, plan.selection)).collect())
    });
    matching(current, asked)
}

/// The processes that serve.
pub fn instances(current: &OsStr) -> Vec<CompletionCandidate> {
    let asked = ask(|channel, session| async move {
        let request = session.request(v1::ListInstancesRequest {});
        let found = RecoveryServiceClient::new(channel).list_instances(request).await?;
        let alive = found.into_inner().instances.into_iter().filter(|instance| instance.alive);
        Ok(alive.map(|instance| (instance.id, instance.address)).collect())
    });
    matching(current, asked)
}

/// The contexts of the file.
pub fn contexts(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = Contexts::read().map(|contexts| contexts.names()).unwrap_or_default();
    matching(current, names.into_iter().map(|name| (name, String::new())).collect())
}

type Offers = Vec<(String, String)>;

fn matching(current: &OsStr, offers: Offers) -> Vec<CompletionCandidate> {
    let begun = current.to_string_lossy();
    let candidate = |(value, help): (String, String)| {
        let help = help.lines().next().unwrap_or_default().chars().take(60).collect::<String>();
        CompletionCandidate::new(value).help((!help.is_empty()).then(|| help.into()))
    };
    offers.into_iter().filter(|(value, _)| value.starts_with(&*begun)).map(candidate).collect()
}

fn ask<F: Future<Output = Result<Offers, Status>>>(
    question: impl FnOnce(Channel, Rc<Session>) -> F,
) -> Offers {
    let words = env::args_os().skip_while(|word| word != "--").skip(1);
    let matches = Cli::command().ignore_errors(true).try_get_matches_from(words);
    let Some(mut global) = matches.ok().and_then(|found| Global::from_arg_matches(&found).ok()) else {
        return Offers::new();
    };
    global.timeout = Some(PATIENCE);
    let Ok(session) = Session::of(global).map(Rc::new) else { return Offers::new() };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Offers::new();
    };
    runtime.block_on(async {
        let Ok(channel) = session.connect().await else { return Offers::new() };
        let asking = question(channel, Rc::clone(&session));
        let answer: Result<Result<Offers, Status>, _> = tokio::time::timeout(PATIENCE, asking).await;
        answer.ok().and_then(Result::ok).unwrap_or_default()
    })
}
