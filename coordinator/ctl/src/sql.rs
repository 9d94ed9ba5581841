//! `tccctl sql`: a question to the views of a database, which the manual documents.
//!
//! It goes straight to the database with a login of the configuration, and asks for one query in a session in which the server
//! refuses writes, with a limit on time and rows. It keeps out every way of changing something: a cursor is declared for the text,
//! and nothing but a query can have one.

use crate::{
    errors::{Exit, Failure},
    output::{Output, table},
};
use serde::Serialize;
use std::{fmt, path::Path, time::Duration};
use tcc_coordinator::{config::Config, databases::Logins};
use tokio_postgres::SimpleQueryMessage;

/// How long a query may take, if `--timeout` does not say otherwise.
const LONGEST: Duration = Duration::from_secs(30);

/// Asks the coordinator's database, or a shard's.
pub async fn ask(
    output: &Output,
    configuration: Option<&Path>,
    shard: Option<&str>,
    query: &str,
    limit: u32,
    timeout: Option<Duration>,
) -> Result<Exit, Box<Failure>> {
    let Some(path) = configuration else {
        return Err(Failure::usage("say with --direct FILE in which configuration the databases are"));
    };
    let config = Config::load(path).map_err(|error| Failure::configuration(&error.to_string()))?;
    let logins =
        Logins::read(&config.postgres).map_err(|error| Failure::configuration(&error.to_string()))?;
    let url = match shard {
        None => &config.coordinator.url,
        Some(name) => {
            let shard = config.shards.iter().find(|shard| shard.name == name);
            &shard.ok_or_else(|| Failure::not_found(&format!("there is no shard {name}")))?.url
        }
    };
    let database = logins.to(url).map_err(|error| Failure::configuration(&error.to_string()))?;
    let answer = fetch(&database.engine.read_only(), query, limit, timeout.unwrap_or(LONGEST)).await;
    let mut answer = answer.map_err(|error| Failure::database(&error))?;
    let has_more = answer.rows.len() > limit as usize;
    answer.rows.truncate(limit as usize);
    output.show_list(&answer, "rows")?;
    if has_more {
        output.remark(&format!("there are more than {limit}: see them with a higher --limit"));
    }
    Ok(Exit::Done)
}

/// Asks for one row more than wanted.
async fn fetch(
    database: &tcc_participant::Postgres,
    query: &str,
    limit: u32,
    longest: Duration,
) -> Result<Answer, tokio_postgres::Error> {
    let client = database.bounded("tccctl-sql").open().await?;
    // Of several statements in one text this is the end.
    client.prepare(query).await?;
    let begin = format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {}", longest.as_millis());
    client.batch_execute(&begin).await?;
    let query = query.trim().trim_end_matches(';');
    client.batch_execute(&format!("DECLARE asked NO SCROLL CURSOR FOR {query}")).await?;
    let mut answer = Answer::default();
    for message in client.simple_query(&format!("FETCH {} FROM asked", u64::from(limit) + 1)).await? {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                answer.columns = columns.iter().map(|column| column.name().to_owned()).collect();
            }
            SimpleQueryMessage::Row(row) => {
                answer.rows.push((0..row.len()).map(|index| row.get(index).map(str::to_owned)).collect());
            }
            _ => {}
        }
    }
    Ok(answer)
}

/// What came back, as PostgreSQL writes it.
#[derive(Debug, Default)]
struct Answer {
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
}

/// Objects with the columns' names.
impl Serialize for Answer {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let row = |row: &Vec<Option<String>>| {
            let values = row.iter().map(|value| serde_json::Value::from(value.clone()));
            self.columns.iter().cloned().zip(values).collect::<serde_json::Map<_, _>>()
        };
        serde_json::json!({ "rows": self.rows.iter().map(row).collect::<Vec<_>>() }).serialize(serializer)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = self.columns.iter().map(|column| column.to_uppercase()).collect();
        let cells = |row: &Vec<Option<String>>| {
            row.iter().map(|value| value.clone().unwrap_or_else(|| "-".to_owned())).collect()
        };
        f.write_str(&table(header, self.rows.iter().map(cells).collect()))
    }
}
