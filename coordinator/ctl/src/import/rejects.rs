//! The file of lines that were wrong or refused: as they stood, with their numbers and reasons before them.
//!
//! It is written like the file that is imported, so that it can be mended and imported itself. A run that goes on cuts it off where
//! the place says that it stood, so that each line stands there once.

use super::lines::{ADDED, Line, Wrong};
use crate::errors::Failure;
use serde_json::{Map, Value};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

/// A file of rejects.
pub struct Rejects {
    path: PathBuf,
    file: BufWriter<File>,
    is_csv: bool,
}

impl Rejects {
    /// Opens it to go on at a length. `header` is that of the file that is imported, if it is CSV.
    pub fn open(path: &Path, length: u64, header: Option<&str>) -> Result<Self, Box<Failure>> {
        let failed = |error: io::Error| Failure::file(&format!("cannot write {}", path.display()), &error);
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let mut file = opened.map_err(failed)?;
        // Two runs at once would do no harm to money, and would write over each other here.
        file.try_lock().map_err(|error| Failure::busy(path, &error.to_string()))?;
        let there = file.metadata().map_err(failed)?.len();
        let length = if length <= there { length } else { 0 };
        file.set_len(length).map_err(failed)?;
        file.seek(SeekFrom::Start(length)).map_err(failed)?;
        let mut rejects =
            Self { path: path.to_owned(), file: BufWriter::new(file), is_csv: header.is_some() };
        if let Some(header) = header.filter(|_| length == 0) {
            // Those of a file of rejects are the old ones.
            let added: Vec<String> = ADDED.iter().map(|name| (*name).to_owned()).collect();
            rejects.line(&format!("{},{header}", added.join(","))).map_err(failed)?;
        }
        Ok(rejects)
    }

    /// Writes a line and what is wrong with it.
    pub fn write(&mut self, line: &Line, wrong: &Wrong) -> Result<(), Box<Failure>> {
        let Wrong { reason, message } = wrong;
        let text = if self.is_csv {
            let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
            let written = writer.write_record([&line.number.to_string(), reason, message]);
            let start = written.ok().and_then(|()| writer.into_inner().ok()).unwrap_or_default();
            format!("{},{}", String::from_utf8_lossy(&start).trim_end(), line.text)
        } else {
            let added = [
                ("line".to_owned(), line.number.into()),
                ("reason".to_owned(), reason.as_str().into()),
                ("message".to_owned(), message.as_str().into()),
            ];
            let mut fields: Map<String, Value> = added.into_iter().collect();
            match serde_json::from_str::<Map<String, Value>>(&line.text) {
                Ok(own) => {
                    for (name, value) in own {
                        fields.entry(name).or_insert(value);
                    }
                }
                Err(_) => drop(fields.insert("text".to_owned(), line.text.as_str().into())),
            }
            Value::Object(fields).to_string()
        };
        self.line(&text).map_err(|error| self.failed(&error))
    }

    /// Makes what was written so far last. Answers how long the file is.
    pub fn sync(&mut self) -> Result<u64, Box<Failure>> {
        let synced = self.file.flush().and_then(|()| {
            self.file.get_ref().sync_data()?;
            self.file.stream_position()
        });
        synced.map_err(|error| self.failed(&error))
    }

    /// The import has ended, with so many rejected lines. Without any the file goes.
    pub fn finish(mut self, rejected: u64) -> Result<(), Box<Failure>> {
        self.sync()?;
        if rejected == 0 {
            fs::remove_file(&self.path).map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.file, "{text}")
    }

    fn failed(&self, error: &io::Error) -> Box<Failure> {
        Failure::file(&format!("cannot write {}", self.path.display()), error)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Format, super::lines::Lines, *};
    use tcc_proto::v1::OnMaturity;

    fn rejected(header: Option<&str>, texts: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rejects");
        let mut rejects = Rejects::open(&path, 0, header).unwrap();
        for (text, number) in texts.iter().zip(2..) {
            let wrong = Wrong { reason: "NO".into(), message: "so, \"no\"".into() };
            let line = Line { number, text: (*text).to_owned(), hold: Err(wrong.clone()) };
            rejects.write(&line, &wrong).unwrap();
        }
        rejects.finish(texts.len() as u64).unwrap();
        fs::read_to_string(&path).unwrap_or_default()
    }

    #[test]
    fn a_line_is_rejected_in_the_form_it_had() {
        assert_eq!(
            rejected(Some("payer,payee"), &["a,b", "c,\"d"]),
            "line,reason,message,payer,payee\n2,NO,\"so, \"\"no\"\"\",a,b\n3,NO,\"so, \"\"no\"\"\",c,\"d\n"
        );
        assert_eq!(
            rejected(None, &["{\"payer\":\"a\",\"line\":9}", "{half"]),
            concat!(
                "{\"line\":2,\"reason\":\"NO\",\"message\":\"so, \\\"no\\\"\",\"payer\":\"a\"}\n",
                "{\"line\":3,\"reason\":\"NO\",\"message\":\"so, \\\"no\\\"\",\"text\":\"{half\"}\n"
            )
        );
        assert_eq!(rejected(Some("payer,payee"), &[]), "");
    }

    #[test]
    fn a_file_of_rejects_can_be_imported_itself() {
        let header = "payer,payee,amount,currency,due_at,on_maturity";
        let text = rejected(Some(header), &["a,b,5,GOLD,2026-11-21T12:00:00Z,CONFIRM"]);

        let mut lines = Lines::begin(text.as_bytes(), Format::Csv, OnMaturity::Unspecified, "a").unwrap();

        assert_eq!(lines.next().unwrap().unwrap().hold.unwrap().payer, "a");
    }

    #[test]
    fn two_runs_at_once_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rejects");
        let _first = Rejects::open(&path, 0, None).unwrap();

        let Err(second) = Rejects::open(&path, 0, None) else { panic!("two may write") };

        assert!(second.text().contains("another import"), "{}", second.text());
    }

    #[test]
    fn a_run_that_goes_on_cuts_off_what_it_will_write_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rejects");
        fs::write(&path, "0123456789").unwrap();

        Rejects::open(&path, 4, None).unwrap().sync().unwrap();

        assert_eq!(fs::read_to_string(&path).unwrap(), "0123");
    }
}
