//! What is made of files, and made again when one of them changes: certificates, callers, keys.
//!
//! The files are read every two seconds and compared. That sees a file that was replaced, one behind a link that was turned
//! (as container platforms do it) and one that was written in place alike. What cannot be made of new contents changes
//! nothing: what there was stays in use, and the log says why. So a certificate may be written before its key.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The contents of files, or why one cannot be read, in order.
type Contents = Result<Vec<Vec<u8>>, WatchError>;

/// Why a value cannot be made of files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// A file cannot be read.
    #[error("cannot read {path}: {why}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        why: String,
    },
    /// A file is not what it should be.
    #[error("{path}: {what}")]
    Content {
        /// Which.
        path: String,
        /// What is wrong with it.
        what: String,
    },
}

impl WatchError {
    /// A file that is not what it should be.
    pub fn content(path: &Path, what: impl ToString) -> Self {
        Self::Content { path: path.display().to_string(), what: what.to_string() }
    }
}

/// A value made of files.
pub struct Watched<T>(RwLock<Arc<T>>);

impl<T: Send + Sync + 'static> Watched<T> {
    /// One that only [`Watched::replace`] changes.
    pub fn new(value: T) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(value))))
    }

    /// Makes the value now, and again whenever a file has changed, until `stop`.
    ///
    /// # Errors
    ///
    /// [`WatchError`], if it cannot be made now.
    pub fn start(
        files: Vec<PathBuf>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, WatchError> + Send + 'static,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, WatchError> {
        let mut seen = read(&files);
        let watched = Self::new(make(seen.as_ref().map_err(Clone::clone)?)?);
        let kept = Arc::clone(&watched);
        tokio::spawn(async move {
            while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
                let files = files.clone();
                // A file may be on a disk that hangs.
                let Ok(now) = tokio::task::spawn_blocking(move || (read(&files), files)).await else {
                    continue;
                };
                let (now, files) = now;
                if now == seen {
                    continue;
                }
                match now.as_ref().map_err(Clone::clone).and_then(|contents| make(contents)) {
                    Ok(value) => {
                        kept.replace(value);
                        tracing::info!(?files, "read again");
                    }
                    Err(error) => tracing::error!(%error, "what was read before stays in use"),
                }
                seen = now;
            }
        });
        Ok(watched)
    }

    /// As it is now.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.0.read().expect("no holder panics"))
    }

    /// From now on it is this.
    pub fn replace(&self, value: T) {
        *self.0.write().expect("no holder panics") = Arc::new(value);
    }
}

fn read(files: &[PathBuf]) -> Contents {
    let read = |path: &PathBuf| {
        let unreadable = |error: std::io::Error| WatchError::Read {
            path: path.display().to_string(),
            why: error.to_string(),
        };
        std::fs::read(path).map_err(unreadable)
    };
    files.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(contents: &[Vec<u8>]) -> Result<i32, WatchError> {
        let text = String::from_utf8_lossy(&contents[0]);
        text.trim().parse().map_err(|error| WatchError::content(Path::new("number"), error))
    }

    async fn until(watched: &Watched<i32>, expected: i32) {
        let is_so = async {
            while *watched.current() != expected {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), is_so).await.expect("it is read again");
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        std::fs::write(&path, "1").unwrap();
        let stop = CancellationToken::new();
        let watched = Watched::start(vec![path.clone()], number, stop.clone()).unwrap();

        std::fs::write(&path, "nonsense").unwrap();
        tokio::time::sleep(LOOK_EVERY + Duration::from_millis(500)).await;
        assert_eq!(*watched.current(), 1);

        // As container platforms do it: another file takes its name.
        std::fs::write(folder.path().join("new"), "2").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        until(&watched, 2).await;
        stop.cancel();
    }

    #[tokio::test]
    async fn a_missing_file_is_told_at_the_start() {
        let missing = vec![PathBuf::from("/nonexistent/number")];

        let error = Watched::start(missing, number, CancellationToken::new()).err().unwrap();

        assert!(error.to_string().starts_with("cannot read /nonexistent/number"), "{error}");
    }
}
