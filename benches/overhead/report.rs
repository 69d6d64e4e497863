//! What was measured, as a table and as JSON.

use comfy_table::{Table, presets};
use cr_bench::machine::Machine;
use cr_bench::sample::Samples;
use serde_json::{Value, json};

use crate::Args;
use crate::jobs::Job;
use crate::modes::{Mode, Run};

/// All runs of one job.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The job.
    pub job: Job,
    /// How much work it was given, in units of its own.
    pub work: u64,
    /// Its runs by mode, in the order of the pairs; the first mode is [`Mode::Alone`].
    pub runs: Vec<(Mode, Vec<Run>)>,
}

impl Outcome {
    /// Seconds of the runs in each mode.
    pub fn seconds(&self) -> impl Iterator<Item = (Mode, Samples)> {
        self.runs.iter().map(|(mode, runs)| (*mode, Samples(runs.iter().map(|run| run.seconds).collect())))
    }

    /// Each run over that alone in the same pair, by mode; without `alone` itself.
    pub fn ratios(&self) -> impl Iterator<Item = (Mode, Samples)> {
        let alone =
            self.seconds().find(|(mode, _)| *mode == Mode::Alone).map(|(_, samples)| samples).unwrap_or_default();
        let others = self.seconds().filter(|(mode, _)| *mode != Mode::Alone);
        others.map(move |(mode, samples)| (mode, samples.over(&alone)))
    }

    /// Whether a promised ratio is exceeded.
    pub fn misses_a_bound(&self) -> bool {
        self.ratios().any(|(mode, ratios)| self.job.bound(mode).is_some_and(|bound| ratios.median() > bound))
    }

    fn frozen(runs: &[Run]) -> Samples {
        Samples(runs.iter().flat_map(|run| run.frozen_ms.iter().copied()).collect())
    }
}

/// A table for people.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "job",
        "mode",
        "seconds (from … to)",
        "over alone (from … to)",
        "bound",
        "checkpoints",
        "frozen ms",
    ]);
    for outcome in outcomes {
        let ratios: Vec<(Mode, Samples)> = outcome.ratios().collect();
        for ((mode, seconds), (_, runs)) in outcome.seconds().zip(&outcome.runs) {
            let shown = |samples: &Samples| {
                let (from, to) = samples.spread();
                format!("{:.3} ({from:.3} … {to:.3})", samples.median())
            };
            let ratio = ratios.iter().find(|(of, _)| *of == mode).map(|(_, samples)| samples);
            let bound =
                outcome.job.bound(mode).zip(ratio).map(|(bound, ratio)| {
                    format!("{bound:.3} {}", if ratio.median() <= bound { "met" } else { "MISSED" })
                });
            let frozen = Outcome::frozen(runs);
            let (from, to) = frozen.spread();
            let frozen_shown = format!("{:.1} ({from:.1} … {to:.1})", frozen.median());
            table.add_row([
                outcome.job.name().to_owned(),
                mode.name().to_owned(),
                shown(&seconds),
                ratio.map(shown).unwrap_or_default(),
                bound.unwrap_or_default(),
                if mode == Mode::Interval { frozen.0.len().to_string() } else { String::new() },
                if frozen.0.is_empty() { String::new() } else { frozen_shown },
            ]);
        }
    }
    table.to_string()
}

/// The same for programs, with every measurement.
pub fn json(args: &Args, machine: &Machine, outcomes: &[Outcome]) -> Value {
    let of_mode = |outcome: &Outcome, mode: Mode, runs: &[Run]| {
        let ratios = outcome.ratios().find(|(of, _)| *of == mode).map(|(_, samples)| samples);
        let details: serde_json::Map<String, Value> = outcome
            .job
            .details()
            .iter()
            .enumerate()
            .map(|(at, what)| {
                (format!("{what}_ms"), runs.iter().filter_map(|run| run.details.get(at)).copied().collect())
            })
            .collect();
        json!({
            "mode": mode.name(),
            "seconds": runs.iter().map(|run| run.seconds).collect::<Vec<_>>(),
            "over_alone": ratios.as_ref().map(|samples| &samples.0),
            "median_over_alone": ratios.as_ref().map(Samples::median),
            "bound": outcome.job.bound(mode),
            "frozen_ms": runs.iter().map(|run| &run.frozen_ms).collect::<Vec<_>>(),
            "details": details,
            "stored_mib": runs.iter().map(|run| run.stored_mib).collect::<Vec<_>>(),
        })
    };
    let jobs: Vec<Value> = outcomes
        .iter()
        .map(|outcome| {
            let modes: Vec<Value> = outcome.runs.iter().map(|(mode, runs)| of_mode(outcome, *mode, runs)).collect();
            json!({ "job": outcome.job.name(), "work": outcome.work, "modes": modes })
        })
        .collect();
    json!({ "machine": machine, "interval": args.interval, "pairs": args.pairs, "jobs": jobs })
}
