//! `tccctl`, the command line for people who operate tcc, and for their scripts.
//!
//! This file says which commands there are and hands each to the file of its noun. Every command is one conversation
//! with a coordinator over gRPC: ask, print the answer, and say by the exit code how it went. It keeps out everything
//! else: no database, no rules of the protocol, no retries that a caller did not ask for. What is allowed is for the
//! server to say.

mod accounts;
mod audit;
mod credentials;
mod errors;
mod holds;
mod output;
mod session;
mod shards;
mod status;

use clap::{Args, CommandFactory as _, Parser, Subcommand, error::ErrorKind};
use credentials::Credentials;
use errors::{Exit, Failure};
use output::{Format, Output};
use session::Session;
use std::{path::PathBuf, process::ExitCode, time::Duration};
use tonic::transport::Uri;
use uuid::Uuid;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the server refused, or failed
  2  the command line is wrong
  3  `audit run` found something
  4  the server cannot be reached, or the outcome is not known: repeating the command is safe,
     for `accounts issue` with the id it printed

An API key or token is read from the file of --token-file, or from the environment: TCC_TOKEN.
It is never an argument, which everybody on this machine could see.";

/// The operator's command line of tcc.
#[derive(Parser)]
#[command(name = "tccctl", version, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Args)]
struct Global {
    /// Where tccd listens
    #[arg(
        long,
        global = true,
        env = "TCC_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:7070",
        value_parser = server
    )]
    server: Uri,
    /// The authorities of the server's certificate (PEM) [default: the system's]
    #[arg(long, global = true, env = "TCC_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A file with an API key or token
    #[arg(long, global = true, env = "TCC_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A client certificate (PEM)
    #[arg(long, global = true, env = "TCC_CERTIFICATE", value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// The private key of the client certificate (PEM)
    #[arg(long, global = true, env = "TCC_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
    /// How to print: for people, or as JSON (errors, too; one object, or one a line)
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// How long to wait for an answer, 1 to 86400 [default: 10; audit run: as long as it takes]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
}

#[derive(Subcommand)]
enum Noun {
    /// Shows how the coordinator and its shards are
    Status,
    /// Opens accounts, issues units, shows books
    #[command(subcommand)]
    Accounts(Accounts),
    /// Shows and cancels holds
    #[command(subcommand)]
    Holds(Holds),
    /// Checks the books
    #[command(subcommand)]
    Audit(Audit),
    /// Decides about shards
    #[command(subcommand)]
    Shards(Shards),
    /// Makes a new id for a hold or an issue: a UUIDv7 (asks no server)
    Id,
}

#[derive(Subcommand)]
enum Accounts {
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
enum Holds {
    /// Shows a hold
    Get {
        /// The hold
        #[arg(value_parser = transaction_id)]
        id: Uuid,
        /// Goes on until it is CONFIRMED or CANCELLED, and prints each new phase as a line
        #[arg(long)]
        watch: bool,
    },
    /// Releases the funds to the payer, if the hold is not due yet; exits with 4 while that is not known
    Cancel {
        /// The hold
        #[arg(value_parser = transaction_id)]
        id: Uuid,
    },
}

#[derive(Subcommand)]
enum Audit {
    /// Checks all books against themselves, each other and the coordinator; exits with 3 if it finds something
    Run,
}

#[derive(Subcommand)]
enum Shards {
    /// Lets work go on with a shard on which it was stopped because the shard has lost commits; run the audit first
    Resume {
        /// The shard, as `status` names it
        name: String,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Cli { global, noun } = Cli::parse();
    let output = Output::new(global.output);
    let Global { server, ca, token_file, certificate, key, timeout, .. } = global;
    let session = Credentials::read(ca, token_file, certificate, key)
        .and_then(|credentials| Session::new(server, &credentials, timeout));
    let session = match session {
        Ok(session) => session,
        Err(what) => Cli::command().error(ErrorKind::ValueValidation, what).exit(),
    };
    match run(noun, &session, &output).await {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output.complain(&failure);
            failure.exit.into()
        }
    }
}

async fn run(noun: Noun, session: &Session, output: &Output) -> Result<Exit, Box<Failure>> {
    match noun {
        Noun::Status => status::show(session, output).await,
        Noun::Accounts(verb) => match verb {
            Accounts::Create { id, currency } => accounts::create(session, output, id, currency).await,
            Accounts::Get { id } => accounts::get(session, output, id).await,
            Accounts::Issue { account, amount, currency, id } => {
                accounts::issue(session, output, account, amount, currency, id).await
            }
            Accounts::Postings { id, after, limit } => {
                accounts::postings(session, output, id, after, limit).await
            }
        },
        Noun::Holds(verb) => match verb {
            Holds::Get { id, watch: false } => holds::get(session, output, id).await,
            Holds::Get { id, watch: true } => holds::watch(session, output, id).await,
            Holds::Cancel { id } => holds::cancel(session, output, id).await,
        },
        Noun::Audit(Audit::Run) => audit::run(session, output).await,
        Noun::Shards(Shards::Resume { name }) => shards::resume(session, output, name).await,
        Noun::Id => {
            println!("{}", Uuid::now_v7());
            Ok(Exit::Done)
        }
    }
}

/// Reads `--server`.
fn server(text: &str) -> Result<Uri, String> {
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
fn transaction_id(text: &str) -> Result<Uuid, String> {
    let id = Uuid::try_parse(text).ok().filter(|id| id.get_version_num() == 7);
    id.ok_or_else(|| "it is a UUID of version 7, such as 019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_timeout_is_a_whole_number_of_seconds() {
        assert_eq!(seconds("86400"), Ok(Duration::from_secs(86_400)));
        for wrong in ["0", "-1", "1.5", "86401", "10s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn global_flags_are_taken_before_and_after_the_command() {
        for args in [["tccctl", "-o", "json", "status"], ["tccctl", "status", "-o", "json"]] {
            assert_eq!(Cli::try_parse_from(args).unwrap().global.output, Format::Json);
        }
    }

    #[test]
    fn the_help_lists_every_exit_code() {
        let help = Cli::command().render_help().to_string();

        for exit in [Exit::Done, Exit::Failed, Exit::Findings, Exit::Unknown] {
            assert!(help.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
        }
        assert!(help.contains("\n  2  the command line is wrong"), "clap's own");
    }
}
