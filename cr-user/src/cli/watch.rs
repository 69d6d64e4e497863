//! `cr watch`: what a job and its checkpoints are doing, live.

mod screen;
mod view;
mod wrap;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use cr::supervise::{self, Status};

use super::place::Place;
use super::{Execute, Output};
use screen::{Screen, Woken};
use view::{Meter, View};

const LONG: &str = "\
Shows what a job that a controller (cr run, cr attach, cr restore) holds is doing, and its checkpoints, each second.

The controller is asked, and answers from counters: the job is not stopped, and its memory is not looked at. While a \
checkpoint is under way the values are those from before it, and marked so.

  written   memory that was written for the first time since the last checkpoint, or since it came to be: write faults, a page \
each. What is written again before the next checkpoint raises no fault, nor do pages of the hot set
  hot set   memory that is written so often that it is copied each time instead of being watched
  frozen    how long the job stood still for the last checkpoints
  next      when the next checkpoint is due; with `--interval auto` also the numbers behind the interval (docs/policy.md)
  scans     how it is found out what was written: full (all page tables are asked), or narrow (only where writes were noted)
  lost      writes, forks and the like that were not noted: the next checkpoint then asks about everything
  compacted the checkpoint of which one full image is being made, or was last, and how long ago
  uploads   where the store is the spool of a bucket: the newest checkpoint that is there, how many are not yet, and why if nothing \
gets there at the moment

On a terminal the view is redrawn in place, and Ctrl-C ends it (never the job). In a pipe it is a line a sample.";

const AFTER: &str = "\
Examples:
  cr watch 4711                         the job, one of its processes, or its controller
  cr watch --store ckpt                 the job whose checkpoints go to ckpt
  cr watch --store ckpt --every 10s     less often
  cr watch 4711 --once --json | jq .frozen_ms

With --json: an object a line, {\"at\", \"pid\", \"store\", \"busy\", \"age_ms\", \"written_mib_s\", \"faults_s\", \"hot_mib\", \
\"lost\", \"scans\", \"frozen_ms\", \"last\", \"taken\", \"failed\", \"interval_ms\", \"next_ms\", \"auto\", \"compaction\", \"uploads\"}; what is \
not known is null. docs/policy.md explains each.

Exit codes: 0 shown, or the job has ended meanwhile; 121 no such process, or no controller holds it; 122 it is no store";

/// Show live what a job and its checkpoints are doing.
#[derive(Debug, clap::Args)]
#[command(long_about = LONG, after_long_help = AFTER)]
pub(super) struct Args {
    /// The job: its pid, that of one of its processes, or that of its controller.
    #[arg(required_unless_present = "store", conflicts_with = "store")]
    pid: Option<i32>,

    /// The directory or bucket that holds the job's checkpoints (with a --spool of its own: that directory).
    #[arg(long, value_name = "DIR|URL")]
    store: Option<PathBuf>,

    /// Time between two samples.
    #[arg(long, value_name = "T", default_value = "1s", value_parser = parse_every)]
    every: Duration,

    /// Show one sample, and end.
    #[arg(long)]
    once: bool,

    /// Print JSON: an object a line.
    #[arg(long)]
    json: bool,
}

fn parse_every(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|e| format!("{e}; write 500ms, 1s or 1min"))?;
    if every < Duration::from_millis(100) {
        Err("more often than every 100ms is not to be seen".to_owned())
    } else {
        Ok(every)
    }
}

impl Execute for Args {
    fn json(&self) -> bool {
        self.json
    }

    fn execute(&self, output: Output) -> cr::Result<u8> {
        let dir = match (&self.store, self.pid) {
            (Some(store), _) => {
                let dir = Place::of(store, None, cr::seal::Keys::default())?.dir;
                cr::store::Store::open_existing(&dir, cr::object::KINDS)?;
                dir
            }
            (None, pid) => supervise::store_of(pid.expect("clap requires one of the two"))?,
        };
        let ask = || supervise::status(&dir);
        let first = ask()?.ok_or_else(|| cr::Error::NoController { dir: dir.clone() })?;
        let mut meter = Meter::default();
        meter.rates(&first, Instant::now());
        let mut screen = Screen::open(output.json || self.once)?;
        // What is shown first shall have rates, too.
        let mut pause = self.every.min(Duration::from_millis(500));
        let mut shown: Option<View> = None;
        loop {
            match screen.wait(pause)? {
                Woken::Time => {}
                Woken::Redraw => {
                    if let Some(view) = &shown {
                        screen.show(view);
                    }
                    continue;
                }
                Woken::End(code) => {
                    screen.close(shown.as_ref());
                    return Ok(code);
                }
            }
            pause = self.every;
            let Some(status) = ask_again(&ask, first.pid)? else {
                screen.close(shown.as_ref());
                log::warn!("the job has ended, or its controller has let go of it");
                return Ok(0);
            };
            let rates = meter.rates(&status, Instant::now());
            let view = View::of(&dir, status, rates);
            let read = if output.json { screen.line(&view.json()) } else { screen.show(&view) };
            if !read || self.once {
                screen.close(None);
                return Ok(0);
            }
            shown = Some(view);
        }
    }
}

/// The status; none once the job has ended.
fn ask_again(ask: &impl Fn() -> cr::Result<Option<Status>>, pid: i32) -> cr::Result<Option<Status>> {
    match ask() {
        Ok(status) => Ok(status.filter(|status| status.pid == pid)),
        // A controller that is about to end says so, or dies in the middle of its answer.
        Err(e @ (cr::Error::Controller { .. } | cr::Error::System { .. })) => {
            log::info!("{e}");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_has_a_limit() {
        assert_eq!(parse_every("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "0s", "50ms", "often", "-1s"] {
            assert!(parse_every(bad).is_err(), "{bad}");
        }
    }
}
