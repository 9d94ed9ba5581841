//! `tccctl`, the command line for people who operate tcc, and for their scripts.
//!
//! This file hands each command to the file of its noun; which there are, `args` says. Every command is one conversation
//! with a coordinator over gRPC: ask, print the answer, and say by the exit code how it went. With `--direct` the coordinator's
//! reading half answers in this process, from the databases. It keeps out everything else: no rules of the protocol, no retries
//! that a caller did not ask for. What is allowed is for the
//! server to say.

mod accounts;
mod actions;
mod args;
mod attention;
mod audit;
mod complete;
mod configuration;
mod contexts;
mod credentials;
mod errors;
mod explain;
mod holds;
mod import;
mod output;
mod participants;
mod payout;
mod plans;
mod registered;
mod session;
mod shards;
mod sql;
mod status;

use args::{
    Accounts, Actions, Acts, Audit, Cli, ConfigVerb, ContextVerb, Global, Holds, Instances, Noun, Parked,
    Participants, Payout, Plan, Shards,
};
use attention::{Kind, act};
use clap::{CommandFactory as _, Parser as _, ValueEnum as _};
use clap_complete::{CompleteEnv, env::Shells};
use contexts::Context;
use credentials::TlsFiles;
use errors::{Exit, Failure};
use output::{Output, Style};
use session::Session;
use std::{collections::HashMap, path::PathBuf, process::ExitCode};
use tcc_proto::v1::{ListHoldsRequest, OperatorActionKind};
use uuid::Uuid;

fn main() -> ExitCode {
    // A shell that wants to know what may come next says so in its environment, and this does not return.
    CompleteEnv::with_factory(Cli::command).complete();
    let Cli { global, noun } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return unparsed(&error),
    };
    let output = Output::new(global.output);
    let ended = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run_offline(noun, global, &output)),
        Err(error) => Err(Failure::unusable(format!("cannot start: {error}"))),
    };
    match ended {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output.complain(&failure);
            failure.exit.into()
        }
    }
}

/// Tells what is wrong with a command line as it asks for answers, as far as that can be seen; or gives the help that it asks for.
fn unparsed(error: &clap::Error) -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let style = words.iter().enumerate().find_map(|(index, word)| {
        let value = match word.as_str() {
            "-o" | "--output" => words.get(index + 1)?.as_str(),
            word => word.strip_prefix("--output=").or_else(|| word.strip_prefix("-o"))?,
        };
        Style::from_str(value.trim_start_matches('='), true).ok()
    });
    match style
        .filter(|style| error.use_stderr() && matches!(style, Style::Json | Style::Jsonl | Style::Yaml))
    {
        Some(style) => {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Output::new(style).complain(&Failure::usage(first));
            Exit::Usage.into()
        }
        None => error.exit(),
    }
}

/// What asks no server needs no credentials either.
async fn run_offline(noun: Noun, global: Global, output: &Output) -> Result<Exit, Box<Failure>> {
    match noun {
        Noun::Explain { reason: Some(reason) } => explain::one(output, reason),
        Noun::Explain { reason: None } => explain::all(output),
        Noun::Completions { shell } => completions(shell),
        Noun::Id => {
            println!("{}", Uuid::now_v7());
            Ok(Exit::Done)
        }
        Noun::Configuration(ConfigVerb::Check { file, databases }) => {
            configuration::check(output, file, databases).await
        }
        Noun::Contexts(verb) => match verb {
            ContextVerb::List => contexts::list(output),
            ContextVerb::Use { name } => contexts::choose(output, name),
            ContextVerb::Remove { name } => contexts::remove(output, name),
            ContextVerb::Add { name } => {
                let Global { server, ca, token_file, certificate, key, direct, .. } = global;
                let server = server.map_or(String::new(), |server| server.to_string());
                if server.is_empty() && direct.is_none() {
                    return Err(Failure::usage("say with --server where it is, or with --direct"));
                }
                let absolute =
                    |file: Option<PathBuf>| file.map(|file| std::path::absolute(&file).unwrap_or(file));
                let context = Context {
                    server: server.trim_end_matches('/').to_owned(),
                    ca: absolute(ca),
                    token_file: absolute(token_file),
                    certificate: absolute(certificate),
                    key: absolute(key),
                    direct: absolute(direct),
                };
                contexts::add(output, name, context)
            }
        },
        // A participant is asked itself, and a context's files are for its coordinator.
        Noun::Participants(Participants::Verify(asked)) => {
            let Global { ca, certificate, key, .. } = global;
            let tls = TlsFiles::read(ca, certificate, key).map_err(|what| Failure::usage(&what))?;
            participants::verify_one(output, asked, tls).await
        }
        noun => {
            // A payout participant is asked itself.
            let global = match &noun {
                Noun::Payout { participant, .. } => Global { server: Some(participant.clone()), ..global },
                _ => global,
            };
            let session = match Session::of(global) {
                Ok(session) => session,
                Err(what) => return Err(Failure::usage(&what)),
            };
            if session.configuration().is_some() {
                output.remark(&format!("reading straight from {}; nothing can be changed", session.place()));
            }
            run(noun, &session, output).await
        }
    }
}

async fn run(noun: Noun, session: &Session, output: &Output) -> Result<Exit, Box<Failure>> {
    match noun {
        Noun::Status { watch: Some(every), .. } => status::watch(session, output, every).await,
        Noun::Status { exit_code, watch: None } => status::show(session, output, exit_code).await,
        Noun::Stuck(listing) => attention::stuck(session, output, listing).await,
        Noun::Parked(verb) => match verb {
            Parked::List(listing) => attention::list(session, output, &[Kind::Parked], listing).await,
            Parked::Describe { id } => attention::describe(session, output, id).await,
            Parked::Requeue(chosen) => act(session, output, OperatorActionKind::Requeue, chosen).await,
            Parked::Acknowledge(chosen) => {
                act(session, output, OperatorActionKind::Acknowledge, chosen).await
            }
        },
        Noun::Plan(verb) => match verb {
            Plan::Show { id, refused } => plans::show(session, output, id, refused).await,
            Plan::List => plans::list(session, output).await,
            Plan::Execute { id, why, max_per_second, yes } => {
                plans::execute(session, output, id, why, max_per_second, yes).await
            }
        },
        Noun::Actions(Actions::List(Acts { target, plan, after, limit })) => {
            actions::list(session, output, after, target, plan, limit.unwrap_or(100)).await
        }
        Noun::Actions(Actions::Export(Acts { target, plan, after, limit })) => {
            let output = Output::new(Style::Jsonl);
            actions::list(session, &output, after, target, plan, limit.unwrap_or(u32::MAX)).await
        }
        Noun::Instances(Instances::List) => actions::instances(session, output).await,
        Noun::Instances(Instances::Drain { id, why }) => {
            actions::drain_instance(session, output, id, why).await
        }
        Noun::Sql { query, shard, limit } => {
            let (configuration, timeout) = (session.configuration(), session.chosen_timeout());
            sql::ask(output, configuration, shard.as_deref(), &query, limit, timeout).await
        }
        Noun::Accounts(verb) => match verb {
            Accounts::Create { id, currency } => accounts::create(session, output, id, currency).await,
            Accounts::Get { id } => accounts::get(session, output, id).await,
            Accounts::Issue { account, amount, currency, id } => {
                accounts::issue(session, output, account, amount, currency, id).await
            }
            Accounts::Burn { account, amount, currency, id } => {
                accounts::burn(session, output, account, amount, currency, id).await
            }
            Accounts::Block { id } => accounts::block(session, output, id).await,
            Accounts::Unblock { id } => accounts::unblock(session, output, id).await,
            Accounts::Close { id } => accounts::close(session, output, id).await,
            Accounts::Balance { id, at } => accounts::balance(session, output, id, at).await,
            Accounts::Holdings { id } => accounts::holdings(session, output, id).await,
            Accounts::Postings { id, after, limit } => {
                accounts::postings(session, output, id, after, limit).await
            }
        },
        Noun::Holds(verb) => match verb {
            Holds::Get { id, watch: false } => holds::get(session, output, id).await,
            Holds::Get { id, watch: true } | Holds::Watch { id } => holds::watch(session, output, id).await,
            Holds::Describe { id } => attention::describe(session, output, id).await,
            Holds::List { payer, payee, phase, label, from, until, limit } => {
                let request = ListHoldsRequest {
                    payer: payer.unwrap_or_default(),
                    payee: payee.unwrap_or_default(),
                    phases: phase.into_iter().map(i32::from).collect(),
                    labels: label.into_iter().collect::<HashMap<_, _>>(),
                    created_from: from,
                    created_until: until,
                    ..Default::default()
                };
                holds::list(session, output, request, limit).await
            }
            Holds::Retry(chosen) => act(session, output, OperatorActionKind::Retry, chosen).await,
            Holds::Pause(chosen) => act(session, output, OperatorActionKind::Pause, chosen).await,
            Holds::Resume(chosen) => act(session, output, OperatorActionKind::Resume, chosen).await,
            Holds::ForceCancel(chosen) => act(session, output, OperatorActionKind::ForceCancel, chosen).await,
            Holds::Import(asked) => import::run(session, output, asked).await,
            Holds::Confirm { id } => holds::confirm(session, output, id).await,
            Holds::Cancel { id } => holds::cancel(session, output, id).await,
        },
        Noun::Audit(verb) => match verb {
            Audit::Run => audit::run(session, output).await,
            Audit::Show => audit::show(session, output).await,
            Audit::Watch => audit::watch(session, output).await,
            Audit::Replay { shard, at } => audit::replay(session, output, shard, at).await,
        },
        Noun::Shards(verb) => match verb {
            Shards::List => shards::list(session, output).await,
            Shards::Describe { name } => shards::describe(session, output, name).await,
            Shards::Drain { name, why } => shards::drain(session, output, name, why).await,
            Shards::Resume { name, why } => shards::resume(session, output, name, why).await,
        },
        Noun::Participants(verb) => match verb {
            Participants::List => registered::list(session, output).await,
            Participants::Describe { name } => registered::describe(session, output, name).await,
            Participants::Add(asked) => registered::add(session, output, asked).await,
            Participants::Drain { name, why } => registered::drain(session, output, name, why).await,
            Participants::Resume { name, why } => registered::resume(session, output, name, why).await,
            Participants::Remove { name, why } => registered::remove(session, output, name, why).await,
            Participants::Verify(_) => unreachable!("it asks no coordinator"),
        },
        Noun::Payout { verb, .. } => match verb {
            Payout::Status => payout::status(session, output).await,
            Payout::List(listed) => payout::list(session, output, listed).await,
            Payout::Reconcile(statement) => payout::reconcile(session, output, statement).await,
            Payout::Settle(settled) => payout::settle(session, output, settled).await,
        },
        Noun::Explain { .. }
        | Noun::Completions { .. }
        | Noun::Id
        | Noun::Configuration(_)
        | Noun::Contexts(_) => unreachable!("they ask no server"),
    }
}

/// What a shell reads to ask this program, each time, what may come next.
fn completions(shell: clap_complete::Shell) -> Result<Exit, Box<Failure>> {
    let shells = Shells::builtins();
    let shell = shells.completer(&shell.to_string()).expect("every shell has one");
    let (name, mut script) = ("tccctl", Vec::new());
    let written = shell.write_registration("COMPLETE", name, name, name, &mut script);
    let written = written.and_then(|()| std::io::Write::write_all(&mut std::io::stdout(), &script));
    written.map(|()| Exit::Done).map_err(|error| Failure::unwritable(&error))
}
