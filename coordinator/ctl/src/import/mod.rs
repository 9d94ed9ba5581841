//! `tccctl holds import`: schedules the holds of a file, by the thousand and as often as it takes.
//!
//! Each line has a key: its own, or the name of the import and the line's number. So a line is imported once, however often
//! the import is run: the server answers a key that it knows with the hold that it stands for, and refuses one that comes back
//! with other contents. Everything else here may be lost. The [place] where a run stopped saves the next one the time of
//! asking again, no more.
//!
//! Lines go out in batches, several at a time, and come back in order; what is not known is asked again until it is. A line that
//! is wrong, or refused, goes to a file of its own with the reason, and the others go on. Memory holds the batches under way,
//! whatever the size of the file. It keeps out what a hold may be: that is for the server to say.

mod lines;
mod place;
mod rejects;

use crate::{
    errors::{Exit, Failure},
    output::{Int64, Output, Span, fields},
    session::Session,
};
use clap::{Args, ValueEnum};
use futures::{StreamExt as _, stream};
use indicatif::{ProgressBar, ProgressStyle};
use lines::{Line, Lines, Wrong};
use place::{Place, Source};
use rejects::Rejects;
use serde::Serialize;
use std::{
    fmt,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};
use tcc_proto::v1::{
    self, OnMaturity, batch_create_holds_outcome::Outcome, hold_service_client::HoldServiceClient,
};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Code, transport::Channel};

/// How many lines go out at once. A server takes 1,000, and 2 MiB.
const BATCH: usize = 500;
/// How long one call may take.
const CALL: Duration = Duration::from_secs(30);
/// How long nothing may succeed before the import stops, if `--timeout` does not say otherwise.
const PATIENCE: Duration = Duration::from_secs(300);
/// What is not known is asked again after this time, doubled each time,
const AGAIN_FIRST: Duration = Duration::from_millis(50);
/// up to this one.
const AGAIN_LAST: Duration = Duration::from_secs(2);
/// How often the place is written down.
const NOTE: Duration = Duration::from_secs(1);

/// What to import, and how.
#[derive(Args)]
pub struct Import {
    /// CSV with a header, or JSON Lines; - is standard input
    file: PathBuf,
    /// How it is written [default: as its name ends, otherwise csv]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// What the import is called: with a line's number this is the key of a line without one, so a run that goes on with another
    /// one has the same name [default: the file's name]
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// What happens at the due time of a line that does not say
    #[arg(long, value_enum)]
    on_maturity: Option<Maturity>,
    /// Where lines go that are wrong or refused, each with its number and a reason [default: FILE.rejects]
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,
    /// Where it is written down how far it is [default: FILE.place; of standard input nowhere]
    #[arg(long, value_name = "FILE")]
    place: Option<PathBuf>,
    /// How many batches of 500 lines are under way at a time
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Checks everything, accounts and funds too, and creates nothing
    #[arg(long)]
    validate_only: bool,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// With commas, and a header of payer, payee, amount, currency, due_at, on_maturity, key, label.NAME
    Csv,
    /// An object on each line
    Jsonl,
}

/// What happens at the due time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Maturity {
    /// The payee is paid
    Confirm,
    /// The payer has its funds back
    Cancel,
}

/// What has become of the lines so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
struct Counts {
    lines: u64,
    created: u64,
    known: u64,
    rejected: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.created += other.created;
        self.known += other.known;
        self.rejected += other.rejected;
    }
}

/// Imports a file.
pub async fn run(session: &Session, output: &Output, asked: Import) -> Result<Exit, Box<Failure>> {
    let began = Instant::now();
    let is_stdin = asked.file.as_os_str() == "-";
    let (input, source) = open(&asked.file, is_stdin)?;
    let name = match (&asked.name, is_stdin) {
        (Some(name), _) => name.clone(),
        (None, false) => asked.file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        (None, true) => {
            let message = "say what this import is called with --name: its lines are known again by that and their numbers";
            return Err(Failure::usage(message));
        }
    };
    let beside = |ending: &str| {
        let mut path = asked.file.clone().into_os_string();
        path.push(ending);
        PathBuf::from(path)
    };
    let rejects = match (asked.rejects, is_stdin) {
        (Some(path), _) => path,
        (None, false) => beside(".rejects"),
        (None, true) => {
            return Err(Failure::usage("say with --rejects where lines go that are wrong or refused"));
        }
    };
    // What is only checked leaves nothing to go on from.
    let place =
        asked.place.or_else(|| (!is_stdin).then(|| beside(".place"))).filter(|_| !asked.validate_only);
    let is_input = |path: &Path| !is_stdin && path.canonicalize().ok() == asked.file.canonicalize().ok();
    if is_input(&rejects) || place.as_deref().is_some_and(is_input) {
        return Err(Failure::usage(
            "--rejects and --place name files of their own, not the one that is imported",
        ));
    }
    let format = asked.format.unwrap_or_else(|| format_of(&asked.file));
    let client = HoldServiceClient::new(session.connect().await?);
    output.acting_on(session);

    let mut stands = Place::begin(&name, session.server(), source);
    if let Some(found) = place.as_deref().map(Place::read).transpose()?.flatten() {
        if found.is_of(&stands) {
            output.remark(&format!("going on after line {}, where it stopped", found.line));
            stands = found;
        } else {
            output.remark("the file, its name or the server is not the one of the last run: beginning with the first line");
        }
    }
    let on_maturity = match asked.on_maturity {
        None => OnMaturity::Unspecified,
        Some(Maturity::Confirm) => OnMaturity::Confirm,
        Some(Maturity::Cancel) => OnMaturity::Cancel,
    };
    let lines = Lines::begin(BufReader::new(input), format, on_maturity, &name).map_err(|wrong| {
        Failure::wrong_input(&asked.file.display().to_string(), &wrong.reason, &wrong.message)
    })?;
    let mut rejected = Rejects::open(&rejects, stands.rejects, lines.header())?;
    let bar = bar(source);
    let (first, mut said) = (stands.line, Instant::now());
    let importing = Importing {
        session,
        client,
        validate_only: asked.validate_only,
        patience: session.chosen_timeout().unwrap_or(PATIENCE),
    };
    let batches = read(lines, first);
    let batches =
        stream::unfold(batches, |mut batches| async move { Some((batches.recv().await?, batches)) });
    let mut done = pin!(batches.map(|batch| importing.send(batch)).buffered(asked.parallel.into()));
    let mut stopped = None;
    while let Some(batch) = done.next().await {
        let Done { counts, line, offset, wrong } = match batch {
            Ok(done) => done,
            Err(failure) => {
                stopped = Some(failure);
                break;
            }
        };
        wrong.iter().try_for_each(|(line, wrong)| rejected.write(line, wrong))?;
        (stands.line, stands.counts) = (line, {
            stands.counts.add(counts);
            stands.counts
        });
        bar.set_position(if bar.length().is_some() { offset } else { stands.counts.lines });
        bar.set_message(progress(stands.counts, began));
        if said.elapsed() >= NOTE {
            said = Instant::now();
            note(&mut stands, &mut rejected, place.as_deref())?;
        }
    }
    bar.finish_and_clear();
    note(&mut stands, &mut rejected, place.as_deref())?;
    let summary = Summary::new(name, stands.counts, &rejects, began.elapsed());
    if let Some(mut failure) = stopped {
        if output.is_for_people() {
            output.remark(&format!("{summary:#}"));
        }
        failure.advise(format!(
            "run the command again: it goes on after line {}, and repeats nothing",
            stands.line
        ));
        return Err(failure);
    }
    // It is done: whoever runs it again wants it looked at again.
    place.as_deref().map(Place::forget).transpose()?;
    rejected.finish(stands.counts.rejected)?;
    output.show(&summary)?;
    Ok(if stands.counts.rejected > 0 { Exit::Partly } else { Exit::Done })
}

/// What is read, and how it would be known again.
fn open(file: &Path, is_stdin: bool) -> Result<(Box<dyn Read + Send>, Source), Box<Failure>> {
    if is_stdin {
        return Ok((Box::new(io::stdin()), Source::default()));
    }
    let failed = |error: io::Error| Failure::file(&format!("cannot read {}", file.display()), &error);
    let opened = std::fs::File::open(file).map_err(failed)?;
    let source = Source::of(&opened.metadata().map_err(failed)?);
    Ok((Box::new(opened), source))
}

fn format_of(file: &Path) -> Format {
    match file.extension().and_then(|ending| ending.to_str()) {
        Some("jsonl" | "ndjson" | "json") => Format::Jsonl,
        _ => Format::Csv,
    }
}

/// First what was rejected, then where that was.
fn note(stands: &mut Place, rejected: &mut Rejects, place: Option<&Path>) -> Result<(), Box<Failure>> {
    stands.rejects = rejected.sync()?;
    place.map_or(Ok(()), |place| stands.write(place))
}

/// Drawn at a terminal only.
fn bar(source: Source) -> ProgressBar {
    let (bar, template) = match source.bytes {
        Some(bytes) => (ProgressBar::new(bytes), "[{wide_bar}] {percent:>3}%  {msg}  {eta}"),
        None => (ProgressBar::no_length(), "{spinner} {msg}"),
    };
    bar.set_style(ProgressStyle::with_template(template).expect("the template is well formed"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn progress(counts: Counts, began: Instant) -> String {
    let rate = counts.lines as f64 / began.elapsed().as_secs_f64().max(0.001);
    format!("{} lines, {rate:.0}/s, {} rejected", counts.lines, counts.rejected)
}

/// Lines that go out together, and where the file stands after them.
struct Batch {
    lines: Vec<Line>,
    line: u64,
    offset: u64,
}

/// Reads batches on a thread of its own, for a pipe may keep it waiting, and no further ahead than needed.
fn read<R: Read + Send + 'static>(
    mut lines: Lines<BufReader<R>>,
    after: u64,
) -> mpsc::Receiver<io::Result<Batch>> {
    let (tell, told) = mpsc::channel(2);
    std::thread::spawn(move || {
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            while batch.len() < BATCH {
                match lines.next() {
                    Ok(Some(line)) if line.number > after => batch.push(line),
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        let _ = tell.blocking_send(Err(error));
                        return;
                    }
                }
            }
            let Some(last) = batch.last() else { return };
            let (line, offset) = (last.number, lines.offset());
            if tell.blocking_send(Ok(Batch { lines: batch, line, offset })).is_err() {
                return;
            }
        }
    });
    told
}

/// A batch of which everything is known.
struct Done {
    counts: Counts,
    line: u64,
    offset: u64,
    wrong: Vec<(Line, Wrong)>,
}

/// What all batches of an import have in common.
struct Importing<'a> {
    session: &'a Session,
    client: HoldServiceClient<Channel>,
    validate_only: bool,
    patience: Duration,
}

impl Importing<'_> {
    /// Sends a batch until each of its lines has an answer that is one.
    async fn send(&self, batch: io::Result<Batch>) -> Result<Done, Box<Failure>> {
        let Batch { lines, line, offset } = batch.map_err(|error| Failure::file("cannot read on", &error))?;
        let mut done = Done {
            counts: Counts { lines: lines.len() as u64, ..Counts::default() },
            line,
            offset,
            wrong: Vec::new(),
        };
        let mut open = Vec::with_capacity(lines.len());
        for line in lines {
            match &line.hold {
                Ok(_) => open.push(line),
                Err(wrong) => done.wrong.push((line.clone(), wrong.clone())),
            }
        }
        let (mut delay, mut succeeded) = (AGAIN_FIRST, Instant::now());
        while !open.is_empty() {
            let asked = open.len();
            let (unknown, pause) = self.ask(&mut open, &mut done).await?;
            if open.len() < asked {
                (delay, succeeded) = (AGAIN_FIRST, Instant::now());
            }
            let Some(unknown) = unknown.filter(|_| !open.is_empty()) else { continue };
            if succeeded.elapsed() >= self.patience {
                return Err(unknown.unknown());
            }
            tokio::time::sleep(pause.unwrap_or_default().max(delay)).await;
            delay = (delay * 2).min(AGAIN_LAST);
        }
        done.wrong.sort_by_key(|(line, _)| line.number);
        done.counts.rejected = done.wrong.len() as u64;
        Ok(done)
    }

    /// Asks once. Leaves what is still not known, with why and how long the server wants to be left alone.
    async fn ask(
        &self,
        open: &mut Vec<Line>,
        done: &mut Done,
    ) -> Result<(Option<Box<Failure>>, Option<Duration>), Box<Failure>> {
        let hold = |line: &Line| {
            let hold = line.hold.clone().expect("only those are asked for");
            v1::CreateHoldRequest { validate_only: self.validate_only, ..hold }
        };
        let mut request = self
            .session
            .unhurried_request(v1::BatchCreateHoldsRequest { holds: open.iter().map(hold).collect() });
        request.set_timeout(CALL);
        let answer = match self.client.clone().batch_create_holds(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let failure = self.session.failure(status);
                // All of it was sent away: whoever may not call now may not call later either.
                return if failure.is_worth_repeating() {
                    let delay = failure.delay();
                    Ok((Some(failure), delay))
                } else {
                    Err(failure)
                };
            }
        };
        if answer.outcomes.len() != open.len() {
            return Err(Failure::incomplete("outcome for each line"));
        }
        let (mut unknown, mut pause) = (None, None);
        for (line, outcome) in std::mem::take(open).into_iter().zip(answer.outcomes) {
            match outcome.outcome {
                Some(Outcome::Created(created)) if created.replayed => done.counts.known += 1,
                Some(Outcome::Created(_)) => done.counts.created += 1,
                Some(Outcome::Error(error)) if is_answer(error.code) => {
                    done.wrong.push((line, Wrong { reason: error.reason, message: error.message }));
                }
                Some(Outcome::Error(error)) => {
                    let delay = error.retry_delay.and_then(|delay| delay.try_into().ok());
                    pause = pause.max(delay);
                    unknown = Some(Failure::of_item(error));
                    open.push(line);
                }
                None => return Err(Failure::incomplete("outcome for a line")),
            }
        }
        Ok((unknown, pause))
    }
}

/// Whether an error is an answer, which repeating would not change. All others mean that it is not known, or was not begun.
fn is_answer(code: i32) -> bool {
    matches!(
        Code::from_i32(code),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
    )
}

/// How an import ended.
#[derive(Debug, Serialize)]
struct Summary {
    name: String,
    lines: Int64,
    created: Int64,
    known: Int64,
    rejected: Int64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejects: Option<String>,
    took: Span,
}

impl Summary {
    fn new(name: String, counts: Counts, rejects: &Path, took: Duration) -> Self {
        let int64 = |count: u64| Int64(count as i64);
        Self {
            name,
            lines: int64(counts.lines),
            created: int64(counts.created),
            known: int64(counts.known),
            rejected: int64(counts.rejected),
            rejects: (counts.rejected > 0).then(|| rejects.display().to_string()),
            took: jiff::SignedDuration::try_from(took).unwrap_or_default().into(),
        }
    }
}

/// `{:#}` is one line.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, lines, created, known, rejected, rejects, took } = self;
        if f.alternate() {
            return write!(f, "{lines} lines: {created} created, {known} were there, {rejected} rejected");
        }
        let mut text = fields([
            ("import", name.clone()),
            ("lines", lines.to_string()),
            ("created", created.to_string()),
            ("there_already", known.to_string()),
            ("rejected", rejected.to_string()),
            ("took", took.to_string()),
        ]);
        if let Some(rejects) = rejects {
            text.push_str(&format!("\nrejects        {rejects}"));
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_ends_a_line() {
        let answers: Vec<i32> = (0..=16).filter(|code| is_answer(*code)).collect();

        assert_eq!(answers, [3, 5, 6, 7, 9, 11]);
    }

    #[test]
    fn a_file_is_taken_for_what_its_name_ends_with() {
        for (name, format) in
            [("a.csv", Format::Csv), ("a.jsonl", Format::Jsonl), ("-", Format::Csv), ("a", Format::Csv)]
        {
            assert_eq!(format_of(Path::new(name)), format, "{name}");
        }
    }
}
