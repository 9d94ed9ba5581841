//! `tccctl config check`: whether a `tccd` could start with a configuration, in the words in which it would say so.

use crate::{
    errors::{Exit, Failure},
    output::{Output, fields},
};
use serde::Serialize;
use std::{fmt, path::PathBuf};
use tcc_coordinator::{config::Config, serve};

/// Checks a configuration; with `databases` its databases, too.
pub async fn check(output: &Output, path: PathBuf, databases: bool) -> Result<Exit, Box<Failure>> {
    let config = Config::load(&path).map_err(|error| Failure::configuration(&error.to_string()))?;
    serve::check(&config, databases).await.map_err(|error| Failure::configuration(&error.to_string()))?;
    let shards = config.shards.iter().map(|shard| shard.name.clone()).collect();
    let checked = Checked { file: path.display().to_string(), listen: config.listen, shards, databases };
    output.show(&checked)?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Checked {
    file: String,
    listen: String,
    shards: Vec<String>,
    databases: bool,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&fields([
            ("configuration", format!("{} is right", self.file)),
            ("listen", self.listen.clone()),
            ("shards", self.shards.join(" ")),
            (
                "databases",
                if self.databases { "all answer" } else { "not asked: see --databases" }.to_owned(),
            ),
        ]))
    }
}
