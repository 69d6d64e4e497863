//! The one thread that does all ptrace work: it owns the job, and takes one order after another.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::oneshot;

use super::compactor::{Automatic, Compactor};
use super::protocol::{Compaction, Done, Less, Response};
use super::{Cut, Started};
use crate::bucket::Gate;
use crate::checkpoint::{self, Activity, Job, Only, Report};
use crate::error::{Error, Result};
use crate::object::files::caller::Lent;
use crate::remote::freeze;
use crate::restore;
use crate::store::StoreWriter;
use crate::store::prune::Rules;
use crate::sys::fd;

/// Where the job comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// It is a child that was just started. That it cannot be opened is no reason to stop waiting for it.
    Child(i32),
    /// It runs already.
    Process(i32),
    /// It is restored from the store.
    Chain {
        /// The checkpoint; none for the newest.
        id: Option<u64>,
        /// How.
        options: restore::Options,
        /// In a pid namespace of its own.
        pid_namespace: bool,
    },
}

/// The name of the thread: by it, others know a process to be a controller.
pub(super) const NAME: &str = "cr-engine";

/// What the thread is told to do.
#[derive(Debug)]
enum Order {
    /// Take a checkpoint.
    Checkpoint { how: How, reply: oneshot::Sender<Result<Landed>> },
    /// Remove checkpoints that the rules do not keep.
    Prune { rules: Rules, dry_run: bool, reply: oneshot::Sender<Response> },
    /// Make one image of the newest checkpoint and all that it builds on.
    Compact { bandwidth: Option<u64>, reply: oneshot::Sender<Response> },
    /// Say what the job is doing, and what is being compacted.
    Look { reply: oneshot::Sender<Seen> },
}

/// How a checkpoint is taken, besides as they all are.
#[derive(Debug, Default)]
pub(super) struct How {
    /// The job is ended once it is durable.
    pub(super) kill: bool,
    /// It is a full one.
    pub(super) full: bool,
    /// Nobody waits for it.
    pub(super) quiet: bool,
    /// What is left out besides.
    pub(super) less: Less,
}

/// A checkpoint that was taken.
#[derive(Debug)]
pub(super) struct Landed {
    pub(super) report: Report,
    /// What the job is doing since.
    pub(super) activity: Activity,
    /// Bytes of the full image that was made of the chain since the checkpoint before.
    pub(super) compacted: Option<u64>,
}

/// What the engine knows.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// What the job is doing; none where it is not held yet.
    pub(super) activity: Option<Activity>,
    /// What is being compacted, or was last.
    pub(super) compaction: Option<Compaction>,
}

/// The thread, as its employer sees it.
#[derive(Debug)]
pub(super) struct Engine {
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<()>,
    /// Where the job came from.
    pub(super) origin: Origin,
    begun: Option<oneshot::Receiver<Result<Begun>>>,
    /// Who was first: the thread that lets a restored job go, or whoever gives the restore up.
    turn: Arc<AtomicU8>,
}

/// A job that the thread has got hold of.
#[derive(Debug)]
pub(super) struct Begun {
    /// What to tell of it.
    pub(super) started: Started,
    /// Readable once it has ended.
    pub(super) pidfd: OwnedFd,
    /// Our terminal, which it has.
    pub(super) lent: Option<Lent>,
}

impl Engine {
    /// Starts the thread, which begins by getting hold of the job. Without `compaction`, one checkpoint is to be expected and no more.
    /// The gate is shut while a checkpoint is taken.
    ///
    /// # Errors
    /// When the kernel makes no thread.
    pub(super) fn start(
        origin: Origin,
        writer: StoreWriter,
        options: checkpoint::Options,
        compaction: Option<Automatic>,
        gate: Gate,
    ) -> Result<Self> {
        let stays = compaction.is_some();
        let (orders, work) = mpsc::channel::<Order>();
        let (tell, begun) = oneshot::channel();
        let turn = Arc::new(AtomicU8::new(UNDECIDED));
        let decided = Arc::clone(&turn);
        let life = move || {
            let (mut held, begun) = match begin(origin, &writer, &options, &decided, stays) {
                Ok(begun) => begun,
                Err(e) => {
                    // The lock goes first: whoever hears of the failure may try again at once.
                    drop(writer);
                    let _ = tell.send(Err(e));
                    return;
                }
            };
            let _ = tell.send(Ok(begun));
            // Nobody waits for this: the first checkpoint is not due yet, or is asked for in its own time.
            if let Some(job) = held.job.as_mut().filter(|_| stays) {
                job.watch();
            }
            let mut compactor = Compactor::new(compaction.unwrap_or(Automatic::NEVER), writer.store().dir());
            while let Some(order) = next_order(&work, &mut compactor, &mut held, &writer) {
                match order {
                    Order::Look { reply } => {
                        let activity = held.job.as_ref().map(Job::activity);
                        let _ = reply.send(Seen { activity, compaction: compactor.seen() });
                    }
                    Order::Prune { rules, dry_run, reply } => {
                        drop(reply.send(held.prune(&writer, &rules, dry_run)));
                    }
                    Order::Compact { bandwidth, reply } => compactor.ask(bandwidth, &writer, reply),
                    Order::Checkpoint { how, reply } => {
                        let kill = how.kill;
                        let shut = gate.shut();
                        let mut outcome = held.checkpoint(&writer, &how.options(&options));
                        drop(shut);
                        match &mut outcome {
                            Ok(_) if kill => held.kill(),
                            Ok(landed) => landed.compacted = compactor.take_news(),
                            Err(error) if error.is_full_disk() => compactor.make_room(),
                            Err(_) => (),
                        }
                        let report = outcome.as_ref().ok().filter(|_| !kill).map(|landed| landed.report.clone());
                        let _ = reply.send(outcome);
                        if let Some(report) = report {
                            compactor.landed(&report, &writer);
                        }
                    }
                }
            }
        };
        let thread = thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(life)
            .map_err(|e| Error::system("starting a thread", e))?;
        Ok(Self { orders, thread, origin, begun: Some(begun), turn })
    }

    /// Gives a restore up, unless the restored job is being let go already: then it is to be waited for.
    pub(super) fn give_up(&self) -> bool {
        self.turn.compare_exchange(UNDECIDED, GIVEN_UP, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Waits until the thread has got hold of the job. May be given up and asked again, until it was told.
    ///
    /// # Errors
    /// Why it has not.
    pub(super) async fn begun(&mut self) -> Result<Begun> {
        match self.begun.as_mut().expect("not asked again once it was told").await {
            Ok(begun) => begun,
            Err(_) => Err(died()),
        }
    }

    /// Orders a checkpoint.
    pub(super) fn order(&self, how: How) -> Flight {
        let (reply, answer) = oneshot::channel();
        // Where the thread has died, the order is dropped, and so the flight fails.
        let _ = self.orders.send(Order::Checkpoint { how, reply });
        Flight(answer)
    }

    /// Orders a pruning, which is done between checkpoints. The engine answers by itself.
    pub(super) fn prune(&self, rules: Rules, dry_run: bool, reply: oneshot::Sender<Response>) {
        let _ = self.orders.send(Order::Prune { rules, dry_run, reply });
    }

    /// Orders a compaction, which is done between other orders. The engine answers by itself.
    pub(super) fn compact(&self, bandwidth: Option<u64>, reply: oneshot::Sender<Response>) {
        let _ = self.orders.send(Order::Compact { bandwidth, reply });
    }

    /// Asks what the engine knows. The answer comes once all that was ordered before is done.
    pub(super) fn look(&self) -> Look {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(Order::Look { reply });
        Look(answer)
    }

    /// Lets go of the job and of the store.
    pub(super) fn end(self) {
        drop(self.orders);
        if self.thread.join().is_err() {
            log::error!("the thread that takes checkpoints has panicked; this is a defect of cr");
        }
    }
}

/// A checkpoint under way.
#[derive(Debug)]
pub(super) struct Flight(oneshot::Receiver<Result<Landed>>);

impl Flight {
    /// What became of it. Nothing is lost when this is dropped before it is ready.
    pub(super) async fn landed(&mut self) -> Result<Landed> {
        (&mut self.0).await.unwrap_or_else(|_| Err(died()))
    }
}

/// A question under way.
#[derive(Debug)]
pub(super) struct Look(oneshot::Receiver<Seen>);

impl Look {
    /// The answer. Nothing is lost when this is dropped before it is ready.
    pub(super) async fn seen(&mut self) -> Seen {
        (&mut self.0).await.unwrap_or_default()
    }
}

impl How {
    /// With all that holds for every checkpoint.
    fn options(self, all: &checkpoint::Options) -> checkpoint::Options {
        let mut options = all.clone();
        options.full |= self.full;
        options.leave_out = options.leave_out.with(&self.less.skip_memory, self.less.honour_dontdump);
        options.external.extend(self.less.external);
        options.tcp = self.less.tcp.unwrap_or(options.tcp);
        options.quiet = self.quiet;
        options.ends = self.kill;
        options.udp = self.less.udp.or(options.udp);
        options.compression = self.less.compression.or(options.compression);
        options
    }
}

/// Waits for an order. Meanwhile the chain is compacted, if that is to be done; and processes that end, though we hold what is left of
/// their main thread, are let go to their parents.
fn next_order(
    work: &mpsc::Receiver<Order>,
    compactor: &mut Compactor,
    held: &mut Held,
    writer: &StoreWriter,
) -> Option<Order> {
    /// How long a parent may have to wait to hear of it.
    const PATIENCE: Duration = Duration::from_millis(100);
    loop {
        let ended = freeze::holds_ended().then_some(PATIENCE);
        let order = match compactor.pause().into_iter().chain(ended).min() {
            None => return work.recv().ok(),
            Some(pause) => work.recv_timeout(pause),
        };
        match order {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                freeze::let_go_of_ended();
                compactor.work(writer, held.job.as_mut());
            }
            order => return order.ok(),
        }
    }
}

fn died() -> Error {
    let message = "the thread that takes checkpoints has died; this is a defect of cr. The job runs on, and `cr attach` \
                   with this store protects it again";
    Error::Controller { code: 125, message: message.to_owned() }
}

/// A job that may not be open yet.
#[derive(Debug)]
struct Held {
    pid: i32,
    job: Option<Job>,
    /// The job's orphans come to us.
    reaps: bool,
}

impl Held {
    fn checkpoint(&mut self, writer: &StoreWriter, options: &checkpoint::Options) -> Result<Landed> {
        let job = match &mut self.job {
            Some(job) => job,
            none => {
                let job = none.insert(Job::open(self.pid)?);
                if self.reaps {
                    job.adopt_orphans();
                }
                job
            }
        };
        let report = job.checkpoint(writer, options)?;
        Ok(Landed { report, activity: job.activity(), compacted: None })
    }

    /// Prunes the store, but for what the next delta builds on.
    fn prune(&self, writer: &StoreWriter, rules: &Rules, dry_run: bool) -> Response {
        let in_use = self.job.as_ref().and_then(Job::builds_on);
        let pruned = if dry_run { writer.store().plan_pruning(rules, in_use) } else { writer.prune(rules, in_use) };
        match pruned {
            Ok(pruned) => Response::ok(Done::Pruned(pruned)),
            Err(error) => Response::error(error.exit_code(), error.to_string()),
        }
    }

    /// Ends the job, and waits until it is dead.
    fn kill(&mut self) {
        if let Some(job) = &mut self.job {
            kill(job);
        }
    }
}

/// Ends a job by SIGKILL and waits until its root is dead (though perhaps not reaped by its parent).
pub(super) fn kill(job: &mut Job) {
    const PATIENCE: Duration = Duration::from_secs(10);
    job.kill();
    let timeout = PollTimeout::try_from(PATIENCE).expect("a few seconds");
    let _ = poll(&mut [PollFd::new(job.pidfd(), PollFlags::POLLIN)], timeout);
}

const UNDECIDED: u8 = 0;
const LET_GO: u8 = 1;
const GIVEN_UP: u8 = 2;

fn begin(
    origin: Origin,
    writer: &StoreWriter,
    options: &checkpoint::Options,
    turn: &AtomicU8,
    stays: bool,
) -> Result<(Held, Begun)> {
    let mut lent = None;
    let (job, cuts) = match origin {
        Origin::Child(pid) => {
            // It may have ended, or become somebody else's by executing a set-user-id program: that is its right.
            let mut job = Job::open(pid).inspect_err(|e| log::info!("cannot hold the job yet: {e}")).ok();
            if let Some(job) = job.as_mut().filter(|_| stays) {
                job.adopt_orphans();
            }
            let pidfd = fd::pidfd_open(pid).map_err(|e| Error::system(format!("pidfd_open of pid {pid}"), e))?;
            let started = Started { pid, cuts: Vec::new() };
            return Ok((Held { pid, job, reaps: stays }, Begun { started, pidfd, lent }));
        }
        Origin::Process(pid) => (open(pid, options.only.as_ref(), writer)?, Vec::new()),
        Origin::Chain { id, options: how, .. } => {
            let restored = restore::restore(writer.store(), id, how, &options.external)?;
            let cuts = restored.cuts().iter().map(Cut::from).collect();
            if turn.compare_exchange(UNDECIDED, LET_GO, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                let message = "the restore was given up; nothing of it is left".to_owned();
                return Err(Error::Controller { code: 125, message });
            }
            lent = restored.lend_terminal().filter(|_| stays);
            (restored.run()?, cuts)
        }
    };
    let (pid, reaps) = (job.pid(), stays && matches!(origin, Origin::Chain { .. }));
    let mut job = job;
    if reaps {
        job.adopt_orphans();
    }
    let pidfd = job.pidfd().try_clone_to_owned().map_err(|e| Error::system("duplicating a pidfd", e))?;
    Ok((Held { pid, job: Some(job), reaps }, Begun { started: Started { pid, cuts }, pidfd, lent }))
}

/// Opens a job whose store may hold older checkpoints of it.
fn open(pid: i32, only: Option<&Only>, writer: &StoreWriter) -> Result<Job> {
    let mut job = only.map_or_else(|| Job::open(pid), |only| Job::open_part(pid, only))?;
    if writer.store().newest_id()?.is_some() {
        job.follow_chain(writer.store())?;
    }
    Ok(job)
}
