//! How far an import is: a small file beside the one that is imported.
//!
//! It is replaced as a whole, and says which file of which size and time it is about. If it is lost, or about another file, the
//! import begins with the first line, and the server knows what it has already.

use super::Counts;
use crate::errors::Failure;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, Metadata},
    io::{self, Write as _},
    path::Path,
    time::UNIX_EPOCH,
};

/// How far an import is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    name: String,
    server: String,
    source: Source,
    /// Up to and with this line everything is known.
    pub line: u64,
    /// How long the file of rejects was then.
    pub rejects: u64,
    /// What has become of the lines.
    pub counts: Counts,
}

/// What is imported, as far as it can be known again. Of standard input nothing can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// How long the file is.
    pub bytes: Option<u64>,
    /// When it was changed last, in nanoseconds since 1970.
    changed: Option<u128>,
}

impl Source {
    /// A file.
    pub fn of(file: &Metadata) -> Self {
        let changed = file.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self { bytes: Some(file.len()), changed: changed.map(|time| time.as_nanos()) }
    }
}

impl Place {
    /// Before the first line.
    pub fn begin(name: &str, server: &str, source: Source) -> Self {
        let counts = Counts::default();
        Self { name: name.to_owned(), server: server.to_owned(), source, line: 0, rejects: 0, counts }
    }

    /// Where a run stopped, if one did.
    pub fn read(path: &Path) -> Result<Option<Self>, Box<Failure>> {
        match fs::read(path) {
            // What cannot be read says nothing.
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::file(&format!("cannot read {}", path.display()), &error)),
        }
    }

    /// Whether it is about the same lines at the same server.
    pub fn is_of(&self, other: &Self) -> bool {
        (&self.name, &self.server, self.source) == (&other.name, &other.server, other.source)
    }

    /// Writes it down.
    pub fn write(&self, path: &Path) -> Result<(), Box<Failure>> {
        let text = serde_json::to_vec(self).expect("it has string keys");
        let new = path.with_added_extension("new");
        let written = fs::File::create(&new).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_data()?;
            fs::rename(&new, path)
        });
        written.map_err(|error| Failure::file(&format!("cannot write {}", path.display()), &error))
    }

    /// The import has ended.
    pub fn forget(path: &Path) -> Result<(), Box<Failure>> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::file(&format!("cannot remove {}", path.display()), &error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_of_the_file_as_it_was_at_the_server_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv.place");
        let source = Source { bytes: Some(7), changed: Some(1) };
        let begin = Place::begin("a.csv", "http://127.0.0.1:7070", source);
        let stands = Place { line: 5, rejects: 70, ..begin.clone() };

        stands.write(&path).unwrap();

        assert_eq!(Place::read(&path).unwrap(), Some(stands.clone()));
        assert!(stands.is_of(&begin));
        assert!(!stands.is_of(&Place::begin("b.csv", "http://127.0.0.1:7070", source)));
        assert!(!stands.is_of(&Place::begin("a.csv", "http://127.0.0.1:7071", source)));
        assert!(!stands.is_of(&Place::begin(
            "a.csv",
            "http://127.0.0.1:7070",
            Source { changed: Some(2), ..source }
        )));
        Place::forget(&path).unwrap();
        assert_eq!(Place::read(&path).unwrap(), None);
        fs::write(&path, "half a").unwrap();
        assert_eq!(Place::read(&path).unwrap(), None);
    }
}
