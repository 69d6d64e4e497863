//! The event loop: time, requests, signals, the end of the job.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use super::board::Board;
use super::control::{Asked, Server, Socket};
use super::engine::{Engine, Flight, How, Landed, Look, Origin, Seen};
use super::journal::{Journal, Planned, Trigger};
use super::plan::Plan;
use super::protocol::{Command, Done, Failure, Less, Response, Status};
use super::signals::{Meaning, Received, Signals};
use super::uploader::{self, Word};
use super::{Config, Outcome, Started, exit};
use crate::describe::Checkpoint;
use crate::error::{Error, Result};
use crate::object::files::caller::Lent;
use crate::procfs;
use crate::store::Store;
use crate::sys::fd::pidfd_send_signal;
use crate::sys::process;

/// How long the job may take to stop after we were told to, before it is taken to ignore that.
const TIME_TO_STOP: Duration = Duration::from_millis(500);

/// Waits for the engine to hold the job, calls `started`, and supervises until the job ends or we are told to let it go.
pub(super) async fn watch(
    config: &Config,
    store: &Store,
    mut engine: Engine,
    socket: Socket,
    uploader: &Word,
    started: impl FnOnce(&Started),
) -> Result<Outcome> {
    let signals = Signals::new()?;
    let origin = engine.origin;
    let begun = tokio::select! {
        begun = engine.begun() => begun?,
        // A child has got the signal from the terminal, or will get it from us once it is held.
        interrupted = signals.interruption("before the job was held: nothing was changed"), if !matches!(origin, Origin::Child(_)) => {
            if matches!(origin, Origin::Process(_)) || engine.give_up() {
                return Err(interrupted?);
            }
            // The restored job runs by now: the signal is for it.
            let begun = engine.begun().await?;
            let _ = pidfd_send_signal(begun.pidfd.as_fd(), libc::SIGTERM);
            begun
        }
    };
    let pid = begun.started.pid;
    let ended = process::watch(begun.pidfd).map_err(|e| Error::system("watching the job", e))?;
    let mut server = Server::start(socket)?;
    started(&begun.started);

    let plan = Plan::begin(config.cadence, store, origin);
    let mut desk = Desk::new(config, store, engine, plan, pid, uploader);
    desk.lent = begun.lent;
    loop {
        let due = desk.plan.due();
        tokio::select! {
            biased;
            signal = signals.next() => {
                let signal = signal.map_err(|e| Error::system("reading a signal", e))?;
                desk.signalled(signal, &ended)?;
            }
            news = desk.news(), if desk.expects_news() => desk.hear(news),
            _ = ended.readable() => break,
            Some(asked) = server.next() => desk.asked(asked),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => desk.is_time(),
            () = sleep(Duration::from_millis(20)), if desk.stopping.is_some() => (),
            () = sleep(Duration::from_millis(100)), if desk.has_terminal() => (),
            () = sleep(Duration::from_secs(1)), if desk.is_ours => (),
        }
        if desk.is_idle() && desk.is_ours {
            exit::reap_orphans(pid);
        }
        if desk.is_idle() && desk.leaving {
            break;
        }
        desk.stop_if_job_has();
        desk.take_off();
    }

    let closing = server.close();
    while desk.flight.is_some() {
        let news = desk.news().await;
        desk.hear(news);
    }
    let outcome = if desk.leaving {
        Outcome::LetGo
    } else if desk.is_ours {
        exit::of_child(pid)
    } else {
        exit::of_other(ended.as_fd()).await
    };
    let last = if desk.leaving {
        Response::error(125, format!("the controller lets go of pid {pid}; ask again, or attach to it anew"))
    } else {
        Response::error(121, format!("pid {pid} has ended; the checkpoints that were taken of it are intact"))
    };
    desk.close(&last);
    closing.finish(&last).await;
    Ok(outcome)
}

/// A checkpoint that is wanted.
struct Wish {
    trigger: Trigger,
    kill: bool,
    less: Less,
    /// It shall be a full one, and why.
    full_because: Option<String>,
    reply: Option<oneshot::Sender<Response>>,
}

/// What the engine has to say.
enum News {
    /// What became of the checkpoint under way.
    Landed(Box<Result<Landed>>),
    /// What it knows.
    Seen(Seen),
}

/// What the controller knows, has in hand, and has to do.
struct Desk<'c> {
    config: &'c Config,
    store: &'c Store,
    /// What the thread that uploads has to say.
    uploader: &'c Word,
    engine: Engine,
    journal: Journal,
    plan: Plan,
    pid: i32,
    /// The job is our child.
    is_ours: bool,
    flight: Option<(Flight, Wish)>,
    wishes: VecDeque<Wish>,
    /// The engine was asked what the job is doing.
    look: Option<Look>,
    board: Board,
    /// Answers that are given once the job is reaped and the store unlocked.
    last_words: Vec<(oneshot::Sender<Response>, Response)>,
    /// We were told to let the job go.
    leaving: bool,
    /// We were told to stop, and until when the job may follow suit.
    stopping: Option<Instant>,
    /// Our terminal, while the job has it.
    lent: Option<Lent>,
    taken: u64,
    failed: u64,
    /// The refusal that was reported last: it stays as it is for as long as the job does.
    refusal: Option<String>,
}

impl<'c> Desk<'c> {
    fn new(config: &'c Config, store: &'c Store, engine: Engine, plan: Plan, pid: i32, uploader: &'c Word) -> Self {
        Self {
            config,
            store,
            uploader,
            is_ours: !matches!(engine.origin, Origin::Process(_)),
            engine,
            journal: Journal::open(store.dir()),
            plan,
            pid,
            flight: None,
            wishes: VecDeque::new(),
            look: None,
            board: Board::default(),
            last_words: Vec::new(),
            leaving: false,
            stopping: None,
            lent: None,
            taken: 0,
            failed: 0,
            refusal: None,
        }
    }

    fn has_terminal(&self) -> bool {
        self.lent.as_ref().is_some_and(Lent::is_given)
    }

    fn is_idle(&self) -> bool {
        self.flight.is_none()
    }

    /// The interval is over. A checkpoint that takes longer than that is not followed at once by another.
    fn is_time(&mut self) {
        self.plan.is_due();
        if self.is_idle() && self.wishes.is_empty() {
            let full_because = self.plan.full_because();
            let (trigger, less) = (Trigger::Interval, Less::default());
            self.wishes.push_back(Wish { trigger, kill: false, less, full_because, reply: None });
        }
    }

    fn asked(&mut self, Asked { command, reply }: Asked) {
        match command {
            // The engine has no time now.
            Command::Status if !self.is_idle() => drop(reply.send(self.status())),
            Command::Status => {
                self.board.ask(reply);
                self.look.get_or_insert_with(|| self.engine.look());
            }
            Command::Compact { bandwidth } => self.engine.compact(bandwidth, reply),
            Command::Prune { rules, dry_run } => self.engine.prune(rules, dry_run, reply),
            Command::Checkpoint { pid: Some(pid), .. } if pid != self.pid => {
                let (dir, held) = (self.config.store.display(), self.pid);
                let message = format!("{dir} holds the checkpoints of pid {held}, not of {pid}: name another store");
                let _ = reply.send(Response::error(122, message));
            }
            Command::Checkpoint { kill, less, .. } => {
                let (trigger, reply) = (Trigger::Request, Some(reply));
                self.wishes.push_back(Wish { trigger, kill, less, full_because: None, reply });
            }
        }
    }

    fn status(&self) -> Response {
        let milliseconds = |duration: Duration| duration.as_millis() as u64;
        let (activity, activity_age_ms) = self.board.activity().unzip();
        Response::ok(Done::Status(Box::new(Status {
            pid: self.pid,
            busy: !self.is_idle(),
            taken: self.taken,
            failed: self.failed,
            interval_ms: self.plan.interval().map(milliseconds),
            next_ms: self.plan.due().map(|due| milliseconds(due.saturating_duration_since(Instant::now()))),
            auto: self.plan.reasons(),
            last: self.board.last(),
            activity,
            activity_age_ms: activity_age_ms.unwrap_or_default(),
            uploads: uploader::progress(self.store, self.config.bucket.as_ref(), self.uploader),
            compaction: self.board.compaction(),
        })))
    }

    /// Begins the next checkpoint that is wanted, if none is under way.
    fn take_off(&mut self) {
        if self.is_idle()
            && let Some(mut wish) = self.wishes.pop_front()
        {
            let (kill, full) = (wish.kill, wish.full_because.is_some());
            let quiet = wish.reply.is_none() && !kill;
            let how = How { kill, full, quiet, less: std::mem::take(&mut wish.less) };
            self.plan.begins();
            self.flight = Some((self.engine.order(how), wish));
        }
    }

    fn expects_news(&self) -> bool {
        self.flight.is_some() || self.look.is_some()
    }

    /// Ready once the engine has something to say. Nothing is lost when this is dropped before it is ready.
    async fn news(&mut self) -> News {
        let (flight, look) = (&mut self.flight, &mut self.look);
        tokio::select! {
            biased;
            seen = async { look.as_mut().expect("a question").seen().await }, if look.is_some() => News::Seen(seen),
            outcome = async { flight.as_mut().expect("a flight").0.landed().await }, if flight.is_some() => News::Landed(Box::new(outcome)),
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Landed(outcome) => self.landed(&outcome),
            News::Seen(seen) => {
                self.look = None;
                self.board.heard(seen);
                let status = self.status();
                self.board.answer(&status);
            }
        }
    }

    fn landed(&mut self, outcome: &Result<Landed>) {
        let (_, wish) = self.flight.take().expect("something has landed");
        if let Ok(landed) = outcome {
            self.plan.learn(landed);
            self.board.saw(landed.activity.clone());
        }
        let interval_ms = self.plan.interval().map(|interval| interval.as_millis() as u64);
        let planned = Planned { interval_ms, auto: self.plan.reasons(), full_because: wish.full_because };
        let response = match outcome {
            Ok(Landed { report, .. }) => {
                self.taken += 1;
                self.refusal = None;
                let checkpoint = Checkpoint::from(report);
                log::info!(
                    "checkpoint {}: {} pages, frozen {} ms",
                    report.id,
                    report.stored_pages,
                    checkpoint.frozen_ms
                );
                self.journal.note(wish.trigger, &planned, Ok(&checkpoint));
                self.board.took(&checkpoint);
                Response::ok(Done::Checkpoint(checkpoint))
            }
            Err(error) => {
                self.failed += 1;
                let failure = Failure::from(error);
                self.journal.note(wish.trigger, &planned, Err(&failure));
                if wish.reply.is_none() {
                    self.complain(error, &failure);
                }
                Response::error(failure.code, failure.message)
            }
        };
        match wish.reply {
            Some(reply) if wish.kill && outcome.is_ok() => self.last_words.push((reply, response)),
            Some(reply) => drop(reply.send(response)),
            None => (),
        }
    }

    /// Reports a checkpoint that nobody waits for and that failed.
    fn complain(&mut self, error: &Error, failure: &Failure) {
        match error {
            // The end of the job is told by our exit code.
            Error::JobGone { .. } | Error::NoSuchJob { .. } => log::info!("no checkpoint: {}", failure.message),
            Error::Refused(_) if self.refusal.as_ref() == Some(&failure.message) => (),
            Error::Refused(_) => {
                log::warn!("{}\nthe job runs on without checkpoints as long as this is so", failure.message);
                self.refusal = Some(failure.message.clone());
            }
            _ => log::warn!("no checkpoint this time, the job runs on: {}", failure.message),
        }
    }

    fn signalled(&mut self, signal: Received, job: &AsyncFd<OwnedFd>) -> Result<()> {
        // Before anybody of the job goes on: in the background it would be stopped again.
        if let Some(lent) = self.lent.as_mut().filter(|_| signal.number == libc::SIGCONT) {
            lent.give();
            lent.resume();
        }
        if self.is_ours {
            if signal.is_for_job(self.pid)
                && let Err(e) = pidfd_send_signal(job.as_fd(), signal.number)
            {
                log::info!("cannot pass signal {} on: {e}", signal.number);
            }
        } else if signal.meaning() == Meaning::End {
            if self.leaving {
                self.store.remove_unfinished()?;
                return Err(signal.as_error("in the middle of a checkpoint; the job runs on"));
            }
            self.leaving = true;
            self.wishes.clear();
        }
        if signal.meaning() == Meaning::Stop {
            self.stopping = Some(Instant::now() + TIME_TO_STOP);
        }
        Ok(())
    }

    /// Stops as a shell expects of its foreground job, but not in the middle of a checkpoint; and if the job is our child,
    /// only once it has stopped too.
    fn stop_if_job_has(&mut self) {
        let has_stopped =
            || procfs::stat(self.pid).is_ok_and(|fields| fields.first().is_some_and(|state| state == "T"));
        // The terminal tells its foreground alone to stop, and that is the job.
        if self.stopping.is_none() && self.has_terminal() && self.is_idle() && has_stopped() {
            self.stopping = Some(Instant::now() + TIME_TO_STOP);
        }
        let Some(until) = self.stopping else { return };
        if self.is_idle() && (!self.is_ours || has_stopped()) {
            self.stopping = None;
            self.lent.iter_mut().for_each(Lent::take_back);
            if let Err(e) = raise(Signal::SIGSTOP) {
                log::info!("cannot stop: {e}");
            }
        } else if self.is_idle() && Instant::now() > until {
            self.stopping = None;
        }
    }

    /// Answers everybody who still waits, after letting go of the job and the store.
    fn close(self, last: &Response) {
        self.engine.end();
        for reply in self.wishes.into_iter().filter_map(|wish| wish.reply) {
            let _ = reply.send(last.clone());
        }
        for (reply, response) in self.last_words {
            let _ = reply.send(response);
        }
    }
}
