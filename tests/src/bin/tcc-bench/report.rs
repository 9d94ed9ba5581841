//! `report.json`: the parts that experiments leave, kept from run to run, and the page that is made of them.

use crate::page;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

/// Figures by the name of a bound, such as `P1` or `P7 idle`.
pub type Figures = BTreeMap<String, f64>;

/// What one experiment found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// When it ended, in UTC.
    #[serde(default)]
    pub measured_at: String,
    /// What goals are compared with.
    pub figures: Figures,
    /// What else there is to know.
    pub facts: Vec<Fact>,
    /// What can be looked at.
    pub plots: Vec<Plot>,
    /// What programs look for: `name: ok key=value …`, or `MISSED` instead of `ok`.
    #[serde(default)]
    pub line: Option<String>,
}

/// Something measured, for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fact {
    /// Of what.
    pub name: String,
    /// With its unit.
    pub value: String,
}

/// A plot, as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// What is to the right, with its unit.
    pub x: String,
    /// What is up, with its unit.
    pub y: String,
    /// How it is drawn.
    pub form: Form,
    /// What is drawn.
    pub series: Vec<Series>,
    /// Names of the bars, in their order. Empty for lines.
    #[serde(default)]
    pub bars: Vec<String>,
}

/// How a plot is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Lines through points.
    Lines,
    /// Lines over the number of nines of a percentile, with a logarithmic y axis.
    Percentiles,
    /// Bars, in which the series are stacked; a point's x is the bar's index.
    Stack,
}

/// One line, or one layer of the bars.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// What it is called.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// Everything.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Contents {
    machine: BTreeMap<String, String>,
    parts: BTreeMap<String, Part>,
}

/// The report's files.
pub struct Report {
    folder: PathBuf,
    contents: Contents,
}

impl Part {
    /// Adds something measured.
    pub fn fact(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.facts.push(Fact { name: name.into(), value: value.into() });
    }

    /// Adds a figure that a goal is compared with.
    pub fn figure(&mut self, name: &str, value: f64) {
        self.figures.insert(name.to_owned(), value);
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.value)
    }
}

impl Report {
    /// Reads what earlier runs left, if anything.
    ///
    /// # Errors
    ///
    /// If the folder cannot be made, or holds a report of another form.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let path = folder.join("report.json");
        let contents = match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("{} is of another form; remove it", path.display()))?,
            Err(_) => Contents::default(),
        };
        Ok(Self { folder: folder.to_owned(), contents })
    }

    /// Puts a part in the place of the one of an earlier run, and writes both files.
    ///
    /// # Errors
    ///
    /// If they cannot be written.
    pub fn put(&mut self, name: &str, mut part: Part) -> anyhow::Result<()> {
        part.measured_at = format!("{:.0}", tcc_core::Timestamp::now());
        self.contents.machine = machine();
        self.contents.parts.insert(name.to_owned(), part);
        let text = serde_json::to_string_pretty(&self.contents).context("writing the report")?;
        let page = page::render(&self.contents.machine, &self.contents.parts);
        for (name, text) in [("report.json", text), ("report.html", page)] {
            let path = self.folder.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

/// What the figures were measured on.
fn machine() -> BTreeMap<String, String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let first = |path: &str, field: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(field)).and_then(|line| line.split_once(':'));
        line.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
    };
    BTreeMap::from([
        ("cores".to_owned(), cores.to_string()),
        ("processor".to_owned(), first("/proc/cpuinfo", "model name")),
        ("memory".to_owned(), first("/proc/meminfo", "MemTotal")),
        ("system".to_owned(), std::env::consts::OS.to_owned()),
        (
            "build".to_owned(),
            if cfg!(debug_assertions) { "debug: figures mean nothing" } else { "release" }.to_owned(),
        ),
    ])
}
