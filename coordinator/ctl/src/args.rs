//! The command line: which commands and options there are, and how people write their values. Nothing is done here.

use crate::{
    attention::{Chosen, Listing, Why},
    complete, import,
    output::Style,
    participants, payout, registered,
};
use clap::{Args, Parser, Subcommand};
use clap_complete::engine::ArgValueCompleter;
use std::{path::PathBuf, time::Duration};
use tcc_proto::{Reason, v1::Phase};
use tonic::transport::Uri;
use uuid::Uuid;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the server refused, or failed
  2  the command line is wrong
  3  something was found: by an audit, by `participants verify`, by `payout reconcile`, and with --exit-code by `status` and `stuck`
  4  the server cannot be reached, or the outcome is not known: repeating the command is safe,
     for `accounts issue` and `accounts burn` with the id they printed
  8  a plan or an import was done in part: some transactions had changed, or some were refused
  9  nobody said yes, or there is no terminal to ask at

An API key or token is read from the file of --token-file, or from the environment: TCC_TOKEN.
It is never an argument, which everybody on this machine could see.";

/// The operator's command line of tcc.
#[derive(Parser)]
#[command(name = "tccctl", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub noun: Noun,
}

#[derive(Args)]
pub struct Global {
    /// Where tccd listens [default: the context's, or http://127.0.0.1:7070]
    #[arg(long, global = true, env = "TCC_SERVER", value_name = "URL", value_parser = server)]
    pub server: Option<Uri>,
    /// The context to use: see tccctl context [default: the one that is in use]
    #[arg(long, global = true, env = "TCC_CONTEXT", value_name = "NAME", add = ArgValueCompleter::new(complete::contexts))]
    pub context: Option<String>,
    /// Reads straight from the databases of this tccd.toml, for when no tccd answers, and changes nothing
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "server")]
    pub direct: Option<PathBuf>,
    /// The authorities of the server's certificate (PEM) [default: the system's]
    #[arg(long, global = true, env = "TCC_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// A file with an API key or token
    #[arg(long, global = true, env = "TCC_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// A client certificate (PEM)
    #[arg(long, global = true, env = "TCC_CERTIFICATE", value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// The private key of the client certificate (PEM)
    #[arg(long, global = true, env = "TCC_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// How to print, errors, too
    #[arg(short, long, global = true, value_enum, default_value_t = Style::Table)]
    pub output: Style,
    /// How long to wait for an answer, 1 to 86400 [default: 10; audit run, audit replay: as long as it takes]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
}

#[derive(Subcommand)]
pub enum Noun {
    /// Shows how the coordinator and its shards are
    Status {
        /// Exits with 3 if that needs somebody
        #[arg(long, conflicts_with = "watch")]
        exit_code: bool,
        /// Shows it again every so many seconds, 1 to 86400, until it is stopped
        #[arg(long, value_name = "SECONDS", value_parser = seconds, num_args = 0..=1, default_missing_value = "2")]
        watch: Option<Duration>,
    },
    /// Lists what has not succeeded for two minutes, or waits for a person, and shards that do not work
    Stuck(Listing),
    /// Works on what waits for a person
    #[command(subcommand)]
    Parked(Parked),
    /// Shows and executes what was planned
    #[command(subcommand)]
    Plan(Plan),
    /// Shows what operators did
    #[command(subcommand)]
    Actions(Actions),
    /// Shows which processes serve, and lets one leave
    #[command(subcommand)]
    Instances(Instances),
    /// Opens, blocks and closes accounts, issues and burns units, shows books
    #[command(subcommand)]
    Accounts(Accounts),
    /// Shows, lists, cancels and mends holds
    #[command(subcommand)]
    Holds(Holds),
    /// Checks the books
    #[command(subcommand)]
    Audit(Audit),
    /// Decides about shards
    #[command(subcommand)]
    Shards(Shards),
    /// Checks participants, and decides who takes part besides the shards
    #[command(subcommand)]
    Participants(Participants),
    /// Names servers, and chooses one of them (asks no server)
    #[command(subcommand, name = "context")]
    Contexts(ContextVerb),
    /// Checks configurations of tccd (asks no server)
    #[command(subcommand, name = "config")]
    Configuration(ConfigVerb),
    /// Asks the views of a database, which the manual lists; needs --direct, or a context with it
    Sql {
        /// One query, such as 'SELECT phase, count(*) FROM tcc_transactions GROUP BY phase'
        query: String,
        /// Asks the database of this shard, instead of the coordinator's
        #[arg(long, value_name = "NAME", add = ArgValueCompleter::new(complete::shards))]
        shard: Option<String>,
        /// At most so many rows
        #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        limit: u32,
    },
    /// Shows what a payout participant has asked its provider for, and compares (asks no coordinator)
    Payout {
        /// Where the payout participant listens
        #[arg(
            long,
            global = true,
            env = "TCC_PAYOUT",
            value_name = "URL",
            default_value = "http://127.0.0.1:7081",
            value_parser = server
        )]
        participant: Uri,
        #[command(subcommand)]
        verb: Payout,
    },
    /// Says what the reason of an error means and what to do; without a reason, of all of them (asks no server)
    Explain {
        /// Such as INSUFFICIENT_FUNDS
        #[arg(value_parser = reason)]
        reason: Option<Reason>,
    },
    /// Prints what makes a shell complete commands, shards, holds, plans and contexts (asks no server)
    Completions {
        /// Which
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Makes a new id for a hold or an issue: a UUIDv7 (asks no server)
    Id,
}

#[derive(Subcommand)]
pub enum Accounts {
    /// Opens an account; repeating it is safe
    Create {
        /// 1 to 64 printable ASCII characters without spaces
        id: String,
        /// The one currency of the account, such as GOLD
        currency: String,
    },
    /// Shows an account
    Get {
        /// The account
        id: String,
    },
    /// Creates units on an account, once per id
    Issue {
        /// The account
        account: String,
        /// In minor units, 1 or more
        #[arg(allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(1..))]
        amount: i64,
        /// The account's currency
        currency: String,
        /// The id of an issue whose outcome is not known, to repeat it; otherwise one is made and printed
        #[arg(long, value_name = "UUIDv7", value_parser = transaction_id)]
        id: Option<Uuid>,
    },
    /// Destroys available units of an account, once per id
    Burn {
        /// The account
        account: String,
        /// In minor units, 1 or more
        #[arg(allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(1..))]
        amount: i64,
        /// The account's currency
        currency: String,
        /// The id of a burn whose outcome is not known, to repeat it; otherwise one is made and printed
        #[arg(long, value_name = "UUIDv7", value_parser = transaction_id)]
        id: Option<Uuid>,
    },
    /// Keeps an account out of new holds, and payments out of it; repeating it is safe
    Block {
        /// The account
        id: String,
    },
    /// Takes a block back; repeating it is safe
    Unblock {
        /// The account
        id: String,
    },
    /// Closes an empty account for good; repeating it is safe
    Close {
        /// The account
        id: String,
    },
    /// Shows what an account had at a time
    Balance {
        /// The account
        id: String,
        /// When, such as 2026-11-21T12:00:00Z [default: now]
        #[arg(long, value_name = "TIME", value_parser = moment)]
        at: Option<prost_types::Timestamp>,
    },
    /// Shows an account and the open holds in which its held units are
    Holdings {
        /// The account
        id: String,
    },
    /// Lists the postings of an account, oldest first
    Postings {
        /// The account
        id: String,
        /// Only postings with a greater version
        #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true,
              value_parser = clap::value_parser!(i64).range(0..))]
        after: i64,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
}

#[derive(Subcommand)]
pub enum Holds {
    /// Shows a hold
    Get {
        /// The hold
        #[arg(value_parser = transaction_id, add = ArgValueCompleter::new(complete::holds))]
        id: Uuid,
        /// Goes on until it is CONFIRMED or CANCELLED, and prints each new phase as a line
        #[arg(long)]
        watch: bool,
    },
    /// Shows where the money is, who says what, what happened, what is the matter, and what to do
    Describe {
        /// The hold
        #[arg(value_parser = transaction_id, add = ArgValueCompleter::new(complete::holds))]
        id: Uuid,
    },
    /// Lists holds of a payer or a payee, the newest first
    List {
        /// Holds that this account pays
        #[arg(long, value_name = "ACCOUNT", required_unless_present = "payee")]
        payer: Option<String>,
        /// Holds that pay this account
        #[arg(long, value_name = "ACCOUNT")]
        payee: Option<String>,
        /// Only those in this phase, such as HELD, or in one of several
        #[arg(long, value_name = "PHASE", value_parser = phase)]
        phase: Vec<Phase>,
        /// Only those with this label, or with all of several
        #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
        label: Vec<(String, String)>,
        /// Only those created then or later
        #[arg(long, value_name = "TIME", value_parser = moment)]
        from: Option<prost_types::Timestamp>,
        /// Only those created before then
        #[arg(long, value_name = "TIME", value_parser = moment)]
        until: Option<prost_types::Timestamp>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Tries now what has failed, instead of later
    Retry(Chosen),
    /// Stops trying, until it is resumed
    Pause(Chosen),
    /// Goes on with what was paused
    Resume(Chosen),
    /// Plans a cancel whatever the time; the payee's shard decides, and what would create or lose units is refused
    ForceCancel(Chosen),
    /// Prints each new phase of a hold as a line, until it is CONFIRMED or CANCELLED
    Watch {
        /// The hold
        #[arg(value_parser = transaction_id, add = ArgValueCompleter::new(complete::holds))]
        id: Uuid,
    },
    /// Schedules the holds of a file; a line that was imported before is not imported again
    Import(import::Import),
    /// Pays a hold now, whenever it is due; exits with 4 while that is not known
    Confirm {
        /// The hold
        #[arg(value_parser = transaction_id, add = ArgValueCompleter::new(complete::holds))]
        id: Uuid,
    },
    /// Releases the funds to the payer, if the hold is not due yet; exits with 4 while that is not known
    Cancel {
        /// The hold
        #[arg(value_parser = transaction_id, add = ArgValueCompleter::new(complete::holds))]
        id: Uuid,
    },
}

#[derive(Subcommand)]
pub enum Audit {
    /// Checks all books against themselves, each other and the coordinator; exits with 3 if it finds something
    Run,
    /// Lists what the auditor in the background has found; exits with 3 if that is something
    Show,
    /// Prints how far the auditor in the background is, until it finds something; exits with 3 then
    Watch,
    /// Rebuilds every balance of a shard from its postings alone, and compares; exits with 3 if one differs
    Replay {
        /// The shard, as `status` names it
        #[arg(long, add = ArgValueCompleter::new(complete::shards))]
        shard: String,
        /// Balances as they were then, such as 2026-11-21T12:00:00Z [default: as they are]
        #[arg(long, value_name = "TIME", value_parser = moment)]
        at: Option<prost_types::Timestamp>,
    },
}

#[derive(Subcommand)]
pub enum Shards {
    /// Lists the shards
    List,
    /// Shows a shard, and what waits for it
    Describe {
        /// The shard, as `status` names it
        #[arg(add = ArgValueCompleter::new(complete::shards))]
        name: String,
    },
    /// Stops work on a shard: new holds that need it are refused, what is due waits
    Drain {
        /// The shard, as `status` names it
        #[arg(add = ArgValueCompleter::new(complete::shards))]
        name: String,
        #[command(flatten)]
        why: Why,
    },
    /// Lets work go on with a shard that was drained, or that has lost commits; then run the audit first
    Resume {
        /// The shard, as `status` names it
        #[arg(add = ArgValueCompleter::new(complete::shards))]
        name: String,
        #[command(flatten)]
        why: Why,
    },
}

#[derive(Subcommand)]
pub enum Parked {
    /// Lists what waits for a person, the oldest first
    List(Listing),
    /// Shows everything that is known of one
    Describe {
        /// The hold
        #[arg(value_parser = transaction_id, add = ArgValueCompleter::new(complete::holds))]
        id: Uuid,
    },
    /// Takes it up again; how often it failed is forgotten
    Requeue(Chosen),
    /// Says that it was settled by hand, so that it does not show as needing attention any more; it stays parked
    Acknowledge(Chosen),
}

#[derive(Subcommand)]
pub enum Plan {
    /// Shows a plan and its transactions
    Show {
        /// The plan
        #[arg(add = ArgValueCompleter::new(complete::plans))]
        id: Uuid,
        /// Only those for which it is refused
        #[arg(long)]
        refused: bool,
    },
    /// Lists the newest plans
    List,
    /// Does what a plan says, to exactly its transactions
    Execute {
        /// The plan
        #[arg(add = ArgValueCompleter::new(complete::plans))]
        id: Uuid,
        #[command(flatten)]
        why: Why,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(i32).range(1..=1_000))]
        max_per_second: i32,
        /// Says yes, but never to force
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Subcommand)]
pub enum Actions {
    /// Lists what was done, the oldest first
    List(Acts),
    /// Prints all of it, one JSON object a line
    Export(Acts),
}

#[derive(Args)]
pub struct Acts {
    /// Only what was done to this hold or shard
    #[arg(long, value_name = "ID", default_value = "")]
    pub target: String,
    /// Only what was done as part of this plan
    #[arg(long, value_name = "ID")]
    pub plan: Option<Uuid>,
    /// Only what has a greater number
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    pub after: i64,
    /// At most so many [default: 100; export: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
}

#[derive(Subcommand)]
pub enum Instances {
    /// Lists the processes that serve, or did within a day
    List,
    /// Lets a process leave: it takes no new work, gives its slots to the others, finishes what is under way, and ends
    Drain {
        /// The instance, as `instances list` names it
        #[arg(add = ArgValueCompleter::new(complete::instances))]
        id: Uuid,
        #[command(flatten)]
        why: Why,
    },
}

#[derive(Subcommand)]
pub enum ContextVerb {
    /// Lists the contexts
    List,
    /// Keeps a context: its server, and the credentials' files, as the options --ca, --token-file, --certificate and --key name them
    Add {
        /// What it is called
        name: String,
    },
    /// Uses a context from now on
    Use {
        /// Which
        #[arg(add = ArgValueCompleter::new(complete::contexts))]
        name: String,
    },
    /// Forgets a context
    Remove {
        /// Which
        #[arg(add = ArgValueCompleter::new(complete::contexts))]
        name: String,
    },
}

#[derive(Subcommand)]
pub enum ConfigVerb {
    /// Says whether a tccd could start with a configuration, and otherwise why not, in the words of tccd
    Check {
        /// The configuration
        #[arg(default_value = "tccd.toml")]
        file: PathBuf,
        /// Looks whether its databases answer, too
        #[arg(long)]
        databases: bool,
    },
}

#[derive(Subcommand)]
pub enum Participants {
    /// Lists the participants that are no shards
    List,
    /// Shows a participant, and what waits for it
    Describe {
        /// The participant, as `participants list` names it
        name: String,
    },
    /// Registers a participant with every instance
    Add(registered::Add),
    /// Lets no new transactions at a participant; what is under way goes on
    Drain {
        /// The participant, as `participants list` names it
        name: String,
        #[command(flatten)]
        why: Why,
    },
    /// Lets new transactions at a participant that was drained
    Resume {
        /// The participant, as `participants list` names it
        name: String,
        #[command(flatten)]
        why: Why,
    },
    /// Forgets a participant that is drained and that nothing unfinished needs
    Remove {
        /// The participant, as `participants list` names it
        name: String,
        #[command(flatten)]
        why: Why,
    },
    /// Asks a participant all that a coordinator could ask, in any order, twice and at the same time (asks no coordinator);
    /// exits with 3 if it does not keep to the fence table
    Verify(participants::Verify),
}

#[derive(Subcommand)]
pub enum Payout {
    /// Shows how long the line is, and whether the provider answers
    Status,
    /// Lists payouts, in the order of their transactions
    List(payout::Listed),
    /// Compares a provider's statement with what is believed here; exits with 3 if something differs
    Reconcile(payout::Statement),
    /// Writes down what a person has found out about a payout of which nobody knows
    Settle(payout::Settled),
}

/// Reads `--server`.
pub fn server(text: &str) -> Result<Uri, String> {
    let wrong = || "write it as https://HOST:PORT or http://HOST:PORT".to_owned();
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    match uri.scheme_str() {
        Some("http" | "https") if matches!(uri.path(), "" | "/") && uri.query().is_none() => Ok(uri),
        _ => Err(wrong()),
    }
}

/// Reads `--timeout`.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("it is a whole number of seconds, 1 to 86400".to_owned()),
    }
}

/// Reads the id of a hold or an issue. Upper case is forgiven: the server is sent the canonical form.
pub fn transaction_id(text: &str) -> Result<Uuid, String> {
    let id = Uuid::try_parse(text).ok().filter(|id| id.get_version_num() == 7);
    id.ok_or_else(|| "it is a UUID of version 7, such as 019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d".to_owned())
}

/// Reads a reason.
fn reason(text: &str) -> Result<Reason, String> {
    text.to_uppercase()
        .parse()
        .map_err(|_| "there is no such reason; `tccctl explain` lists them all".to_owned())
}

/// Reads a phase.
fn phase(text: &str) -> Result<Phase, String> {
    let phase = Phase::from_str_name(&format!("PHASE_{}", text.to_uppercase()));
    phase
        .filter(|phase| *phase != Phase::Unspecified)
        .ok_or_else(|| "it is TRYING, HELD, CONFIRMING, CONFIRMED, CANCELLING or CANCELLED".to_owned())
}

/// Reads a label.
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| "write it as KEY=VALUE".to_owned())?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads a time.
pub fn moment(text: &str) -> Result<prost_types::Timestamp, String> {
    let time: jiff::Timestamp =
        text.parse().map_err(|_| "write it as in RFC 3339, such as 2026-11-21T12:00:00Z".to_owned())?;
    let nanos = time.as_nanosecond();
    Ok(prost_types::Timestamp {
        seconds: nanos.div_euclid(1_000_000_000) as i64,
        nanos: nanos.rem_euclid(1_000_000_000) as i32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::Exit;
    use clap::{CommandFactory as _, error::ErrorKind};

    fn error_of(args: &[&str]) -> (ErrorKind, String) {
        let Err(error) = Cli::try_parse_from([&["tccctl"], args].concat()) else {
            panic!("{args:?} is accepted")
        };
        (error.kind(), error.to_string())
    }

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn amounts_are_positive_whole_numbers() {
        for wrong in ["0", "-5", "1.5", "1e3", "GOLD", "9223372036854775808"] {
            let (kind, message) = error_of(&["accounts", "issue", "alice", wrong, "GOLD"]);

            assert_eq!(kind, ErrorKind::ValueValidation, "{wrong}");
            assert!(message.contains("<AMOUNT>"), "{message}");
        }
    }

    #[test]
    fn an_id_must_be_a_uuid_of_version_7() {
        for wrong in ["7", "019b2c3d-4e5f-4a6b-8c9d-0e1f2a3b4c5d", ""] {
            assert_eq!(error_of(&["holds", "get", wrong]).0, ErrorKind::ValueValidation, "{wrong}");
        }

        let id = transaction_id("019B2C3D-4E5F-7A6B-8C9D-0E1F2A3B4C5D").unwrap();

        assert_eq!(id.to_string(), "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d");
    }

    #[test]
    fn a_server_is_an_address_without_a_path() {
        for good in ["http://127.0.0.1:7070", "http://[::1]:7070/", "https://tcc.internal"] {
            assert!(server(good).is_ok(), "{good}");
        }
        for wrong in
            ["127.0.0.1:7070", "localhost", "https://tcc:7070/v1", "http://tcc:7070/v1", "ftp://tcc", ""]
        {
            assert!(server(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_list_is_narrowed_by_is_read_as_people_write_it() {
        assert_eq!(phase("held"), Ok(Phase::Held));
        assert_eq!(label("order=a=b"), Ok(("order".to_owned(), "a=b".to_owned())));
        let time = moment("1969-12-31T23:59:59.5Z").unwrap();
        assert_eq!((time.seconds, time.nanos), (-1, 500_000_000));

        assert!(phase("UNSPECIFIED").is_err() && phase("PAID").is_err());
        assert!(label("order").is_err());
        assert_eq!(error_of(&["holds", "list"]).0, ErrorKind::MissingRequiredArgument);
    }

    #[test]
    fn a_reason_is_one_of_the_registry() {
        assert_eq!(reason("insufficient_funds"), Ok(Reason::InsufficientFunds));
        assert_eq!(error_of(&["explain", "NONSENSE"]).0, ErrorKind::ValueValidation);
    }

    #[test]
    fn a_timeout_is_a_whole_number_of_seconds() {
        assert_eq!(seconds("86400"), Ok(Duration::from_secs(86_400)));
        for wrong in ["0", "-1", "1.5", "86401", "10s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_moment_says_its_offset() {
        assert_eq!(moment("2026-11-21T13:00:00+01:00"), moment("2026-11-21T12:00:00Z"));
        for wrong in ["yesterday", "2026-11-21", "2026-11-21T12:00:00", "12:00"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn global_flags_are_taken_before_and_after_the_command() {
        for args in [["tccctl", "-o", "json", "status"], ["tccctl", "status", "-o", "json"]] {
            assert_eq!(Cli::try_parse_from(args).unwrap().global.output, Style::Json);
        }
    }

    #[test]
    fn the_help_lists_every_exit_code() {
        let help = Cli::command().render_help().to_string();

        for exit in [Exit::Done, Exit::Failed, Exit::Findings, Exit::Unknown, Exit::Partly, Exit::Declined] {
            assert!(help.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
        }
        assert!(help.contains("\n  2  the command line is wrong"), "clap's own");
    }
}
