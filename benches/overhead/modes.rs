//! The ways in which a job is run.

use anyhow::{Result, ensure};
use clap::ValueEnum;
use cr_bench::commands::{StoreDir, checkpoint};
use cr_bench::guest::Guest;
use cr_bench::strings;

use crate::Setting;
use crate::jobs::Job;

/// How a job is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Without cr.
    Alone,
    /// Under `cr run`, with its pages protected by one checkpoint before the work, and none during it.
    Tracked,
    /// Under `cr run --interval`, with checkpoints during the work: the first one is a full one.
    Interval,
    /// Without cr, while another job on the machine is tracked.
    Beside,
}

/// One run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Of the work, by the job's own account.
    pub seconds: f64,
    /// What else it has said of it ([`Job::details`]).
    pub details: Vec<f64>,
    /// Frozen time of each checkpoint during the run, in milliseconds.
    pub frozen_ms: Vec<f64>,
    /// What all of them have stored, in MiB.
    pub stored_mib: f64,
}

impl Mode {
    /// In the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Tracked => "tracked",
            Self::Interval => "interval",
            Self::Beside => "beside",
        }
    }

    /// Runs the job once.
    pub fn run(self, setting: &Setting, job: Job, work: u64) -> Result<Run> {
        match self {
            Self::Alone => alone(setting, job, work),
            Self::Tracked => tracked(setting, job, work),
            Self::Interval => interval(setting, job, work),
            Self::Beside => beside(setting, job, work),
        }
    }
}

fn alone(setting: &Setting, job: Job, work: u64) -> Result<Run> {
    let mut guest = job.start(setting, work, None)?;
    let run = worked(job, &mut guest)?;
    guest.finish()?;
    Ok(run)
}

fn tracked(setting: &Setting, job: Job, work: u64) -> Result<Run> {
    let store = StoreDir::new(setting.stores.path());
    let mut guest = job.start(setting, work, Some(&under(&store, "1h")))?;
    checkpoint(guest.pid, &store, &[])?;
    let run = worked(job, &mut guest)?;
    guest.finish()?;
    Ok(run)
}

fn interval(setting: &Setting, job: Job, work: u64) -> Result<Run> {
    let store = StoreDir::new(setting.stores.path());
    let mut guest = job.start(setting, work, Some(&under(&store, &setting.args.interval)))?;
    let before = store.journal().len();
    let run = worked(job, &mut guest)?;
    let taken = store.journal().split_off(before);
    ensure!(
        !taken.is_empty(),
        "no checkpoint was taken in {:.1} s of work: take more --seconds or a shorter --interval, or see what is wrong:\n{}",
        run.seconds,
        std::fs::read_to_string(store.path().join("log.jsonl")).unwrap_or_default()
    );
    guest.finish()?;
    let numbers = |name: &str| -> Vec<f64> { taken.iter().filter_map(|c| c[name].as_f64()).collect() };
    let stored_mib = numbers("stored_bytes").iter().sum::<f64>() / f64::from(1 << 20);
    Ok(Run { frozen_ms: numbers("frozen_ms"), stored_mib, ..run })
}

fn beside(setting: &Setting, job: Job, work: u64) -> Result<Run> {
    let store = StoreDir::within(setting.stores.path(), "neighbour")?;
    let neighbour = Guest::start(setting.tmpfs.path(), "idle", &[], Some(&under(&store, "1h")))?;
    checkpoint(neighbour.pid, &store, &[])?;
    let run = alone(setting, job, work)?;
    drop(neighbour);
    Ok(run)
}

/// The work itself.
fn worked(job: Job, guest: &mut Guest) -> Result<Run> {
    let seconds = job.work(guest)?;
    let details = job.details().iter().map(|what| guest.said(what)).collect::<Result<_>>()?;
    Ok(Run { seconds, details, ..Run::default() })
}

fn under(store: &StoreDir, interval: &str) -> Vec<String> {
    strings(&[&"--store", &store.arg(), &"--interval", &interval])
}
