//! A wall clock that can be set while its processes run: of a PostgreSQL server and its standby, or of a `tccd`.
//!
//! libfaketime is put between the process and the C library, and reads from a file how far off the clock is to be. Clocks that only
//! ever go forward are left alone: time-outs and sleeps are measured with them. Each process looks at the file once a second, so for
//! a moment after a step the processes of one server disagree about the time.

use anyhow::Context as _;
use jiff::SignedDuration;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex as Steps,
};
use tcc_core::Timestamp;
use tokio::sync::Mutex;

/// How long a process may go on with the clock that it had: the file is read when a new second begins by the real clock.
const UNNOTICED: SignedDuration = SignedDuration::from_millis(1_100);

/// Whose clock it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// PostgreSQL's, whose processes have one thread and read the time in signal handlers: a lock there could be waited for for ever.
    Server,
    /// A program with many threads, which must not read the file at the same time.
    Threads,
}

/// A clock that can be set.
pub struct Clock {
    /// Whoever sets it holds this until it is right again.
    pub turn: Mutex<()>,
    library: PathBuf,
    file: PathBuf,
    /// Since when it has been how far off.
    steps: Steps<Vec<(Timestamp, SignedDuration)>>,
}

impl Clock {
    /// A clock that is right. `None` where libfaketime is not installed.
    pub fn new(folder: &Path, name: &str, of: Of) -> anyhow::Result<Option<Self>> {
        let Some(library) = library(of) else { return Ok(None) };
        let file = folder.join(format!("clock-of-{name}"));
        let clock = Self { turn: Mutex::default(), library, file, steps: Steps::default() };
        clock.set(SignedDuration::ZERO)?;
        Ok(Some(clock))
    }

    /// What a process must be started with.
    pub fn environment(&self) -> Vec<(String, String)> {
        let variables = [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "0".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ];
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Sets it so far off.
    pub fn set(&self, offset: SignedDuration) -> anyhow::Result<()> {
        // Another file in its place, since nobody may read half of it.
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{:+}\n", offset.as_secs())).context("writing a clock's offset")?;
        let mut steps = self.steps.lock().expect("no holder panics");
        steps.push((Timestamp::now(), offset));
        remove_leftovers();
        fs::rename(&next, &self.file).context("setting a clock")
    }

    /// The latest time that it can have shown to anybody before `at`, which is by the real clock.
    pub fn latest_by(&self, at: Timestamp) -> Timestamp {
        latest_by(&self.steps.lock().expect("no holder panics"), at)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        remove_leftovers();
    }
}

/// Of processes that were killed. libfaketime has no use for what it makes here, and refuses to start where it is already there.
fn remove_leftovers() {
    for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let of = name.strip_prefix("faketime_shm_").or_else(|| name.strip_prefix("sem.faketime_sem_"));
        if of.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn latest_by(steps: &[(Timestamp, SignedDuration)], at: Timestamp) -> Timestamp {
    let ends = steps.iter().skip(1).map(|(since, _)| *since + UNNOTICED).chain([Timestamp::MAX]);
    let shown = steps.iter().zip(ends).filter(|((since, _), _)| *since <= at);
    shown.map(|((_, offset), end)| at.min(end) + *offset).max().unwrap_or(at)
}

/// Where Debian's package and its like have put it.
fn library(of: Of) -> Option<PathBuf> {
    let name = match of {
        Of::Server => "faketime/libfaketime.so.1",
        Of::Threads => "faketime/libfaketimeMT.so.1",
    };
    let folders = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    let folders = folders.chain(["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a small number")
    }

    #[test]
    fn what_a_clock_has_shown_stays_shown_after_it_was_set_back() {
        let seconds = SignedDuration::from_secs;
        let steps = [(second(0), seconds(0)), (second(10), seconds(2)), (second(20), seconds(-2))];

        assert_eq!(latest_by(&steps, second(9)), second(9));
        assert_eq!(latest_by(&steps, second(15)), second(17));
        assert_eq!(latest_by(&steps, second(22)), second(22) + SignedDuration::from_millis(1_100));
        assert_eq!(latest_by(&steps, second(40)), second(38));
    }
}
