//! One sample, in words, in a line and as JSON.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use cr::policy::{Bound, Reasons};
use cr::supervise::{Compaction, CompactionState, Status, Taken, Uploads};
use serde::Serialize;

use super::wrap::wrapped;
use crate::cli::output::bytes;

/// Bytes in a page.
const PAGE: u64 = 4096;
const MIB: f64 = 1_048_576.0;

/// What is written, per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    pub(super) faults: f64,
}

/// Makes rates of counts.
#[derive(Debug, Default)]
pub(super) struct Meter {
    before: Option<(u64, Instant)>,
    last: Option<Rates>,
}

impl Meter {
    /// The rates since the sample before; those of earlier while the counts are not fresh. None: they are not known.
    pub(super) fn rates(&mut self, status: &Status, now: Instant) -> Option<Rates> {
        let faults = status.activity.as_ref()?.write_faults?;
        if is_old(status) {
            return self.last;
        }
        // With an address space that has ended, its count has gone.
        if let Some((before, at)) = self.before.replace((faults, now)).filter(|(before, _)| *before <= faults) {
            let seconds = now.duration_since(at).as_secs_f64();
            self.last = (seconds > 0.0).then(|| Rates { faults: (faults - before) as f64 / seconds });
        }
        self.last
    }
}

/// Whether what the job was doing is from before the checkpoint that is under way.
fn is_old(status: &Status) -> bool {
    status.busy && status.activity_age_ms > 0
}

/// One sample. The names are those of the documented JSON.
#[derive(Clone, Debug, Serialize)]
pub(super) struct View {
    at: String,
    pid: i32,
    store: PathBuf,
    busy: bool,
    age_ms: u64,
    written_mib_s: Option<f64>,
    faults_s: Option<f64>,
    hot_mib: Option<f64>,
    lost: Option<u64>,
    scans: Option<String>,
    frozen_ms: Vec<f64>,
    last: Option<Taken>,
    taken: u64,
    failed: u64,
    interval_ms: Option<u64>,
    next_ms: Option<u64>,
    auto: Option<Reasons>,
    compaction: Option<Compaction>,
    uploads: Option<Uploads>,
}

impl View {
    pub(super) fn of(store: &Path, status: Status, rates: Option<Rates>) -> Self {
        let old = is_old(&status);
        let tenths = |value: f64| (value * 10.0).round() / 10.0;
        let activity = status.activity.as_ref();
        Self {
            at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            pid: status.pid,
            store: store.to_owned(),
            busy: status.busy,
            age_ms: if old { status.activity_age_ms } else { 0 },
            written_mib_s: rates.map(|rates| tenths(rates.faults * PAGE as f64 / MIB)),
            faults_s: rates.map(|rates| rates.faults.round()),
            hot_mib: activity.map(|activity| tenths((activity.hot_pages * PAGE) as f64 / MIB)),
            lost: activity.map(|activity| activity.lost),
            scans: activity.map(|activity| activity.scans.clone()),
            frozen_ms: status.last.iter().map(|taken| taken.frozen_ms).collect(),
            last: status.last.into_iter().next_back(),
            taken: status.taken,
            failed: status.failed,
            interval_ms: status.interval_ms,
            next_ms: status.next_ms,
            auto: status.auto,
            compaction: status.compaction,
            uploads: status.uploads,
        }
    }

    /// As JSON, in one line.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).expect("plain structures")
    }

    /// In one line of text.
    pub(super) fn line(&self) -> String {
        let mark = if self.age_ms > 0 { format!(" (of {} ago)", seconds(self.age_ms)) } else { String::new() };
        let uploads = self.uploads.as_ref().map_or(String::new(), |uploads| format!(", uploads {}", in_words(uploads)));
        let line = format!(
            "{} pid {} written {}, {}{mark}, hot {}, frozen {}, last {}, next {}, scans {}, lost {}, compacted {}{uploads}",
            self.at,
            self.pid,
            self.written(),
            self.faults(),
            self.hot(),
            self.frozen(4),
            self.last(),
            self.next(),
            self.scans.as_deref().unwrap_or("?"),
            self.lost(),
            self.compacted(),
        );
        // Sentences about trouble may have several lines.
        line.replace(char::is_control, " ")
    }

    /// In some lines of at most so many columns.
    pub(super) fn screen(&self, columns: usize) -> Vec<String> {
        const FROZEN: usize = 6;
        let mark = if self.age_ms > 0 {
            format!("   (a checkpoint is under way: from {} ago)", seconds(self.age_ms))
        } else if self.busy {
            "   (a checkpoint is under way)".to_owned()
        } else {
            String::new()
        };
        let mut lines = vec![
            format!("pid {}, store {}: {} taken, {} failed", self.pid, self.store.display(), self.taken, self.failed),
            format!("written   {}, {}{mark}", self.written(), self.faults()),
            format!("hot set   {}", self.hot()),
            format!("frozen    {}  {}", sparkline(&self.frozen_ms), self.frozen(FROZEN)),
            format!("last      {}", self.last()),
            format!("next      {}", self.next()),
        ];
        lines.extend(self.auto.as_ref().map(|auto| format!("because   {}", because(auto))));
        lines.push(format!("scans     {}", self.scans.as_deref().unwrap_or("not known yet")));
        lines.push(format!("lost      {}", self.lost()));
        let mut lines: Vec<String> = lines.into_iter().map(|line| line.chars().take(columns).collect()).collect();
        // What has gone wrong is told whole, and last: nothing else is to give way to it.
        lines.extend(wrapped(&format!("compacted {}", self.compacted()), columns));
        let uploads = self.uploads.as_ref().map(|uploads| format!("uploads   {}", in_words(uploads)));
        lines.extend(uploads.iter().flat_map(|uploads| wrapped(uploads, columns)));
        lines
    }

    fn written(&self) -> String {
        self.written_mib_s.map_or("? MiB/s".to_owned(), |rate| format!("{rate:.1} MiB/s"))
    }

    fn faults(&self) -> String {
        self.faults_s.map_or("? faults/s".to_owned(), |rate| format!("{rate:.0} faults/s"))
    }

    fn hot(&self) -> String {
        self.hot_mib.map_or("?".to_owned(), |hot| format!("{hot:.1} MiB"))
    }

    fn lost(&self) -> String {
        self.lost.map_or("?".to_owned(), |lost| lost.to_string())
    }

    /// The frozen times of the last few checkpoints.
    fn frozen(&self, count: usize) -> String {
        let from = self.frozen_ms.len().saturating_sub(count);
        let times: Vec<_> = self.frozen_ms[from..].iter().map(|ms| format!("{ms:.1}")).collect();
        if times.is_empty() { "-".to_owned() } else { format!("{} ms", times.join(" ")) }
    }

    fn last(&self) -> String {
        let Some(last) = &self.last else { return "none yet".to_owned() };
        let (size, age) = (bytes(last.stored_bytes), seconds(last.age_ms));
        format!("{} {}, {size}, {age} ago, took {:.0} ms", last.id, last.kind.name(), last.total_ms)
    }

    fn compacted(&self) -> String {
        let Some(Compaction { from, state, age_ms }) = &self.compaction else { return "none yet".to_owned() };
        let (from, age) = (from.map_or("?".to_owned(), |from| from.to_string()), seconds(*age_ms));
        match state {
            CompactionState::UnderWay { left_pages } => {
                format!("{from} under way for {age}, {} left", bytes(left_pages * PAGE))
            }
            CompactionState::Done { id, stored_bytes, total_ms } => {
                format!("{from} into {id}, {}, {age} ago, took {total_ms} ms", bytes(*stored_bytes))
            }
            CompactionState::Failed { error } => format!("not {from}, tried {age} ago: {}", error.message),
        }
    }

    fn next(&self) -> String {
        let Some(interval) = self.interval_ms else { return "when it is asked for".to_owned() };
        let kind = if self.auto.is_some() { "auto" } else { "fixed" };
        let due = self.next_ms.map_or("?".to_owned(), seconds);
        format!("in {due}, every {} ({kind})", seconds(interval))
    }
}

/// Why the interval is what it is.
fn because(auto: &Reasons) -> String {
    let mtbf = humantime::format_duration(Duration::from_secs(auto.mtbf_ms.div_ceil(1000)));
    if auto.bound == Bound::First {
        return format!("nothing is measured yet, MTBF {mtbf}");
    }
    let bound = match auto.bound {
        Bound::Formula | Bound::First => String::new(),
        Bound::Lowest => ", at the lowest interval".to_owned(),
        Bound::Durable => ", at twice the time until durable".to_owned(),
        Bound::Highest => ", at the highest interval".to_owned(),
    };
    let lost = auto.lost_percent.map_or(String::new(), |lost| format!(", {lost:.2} % of the time is lost"));
    format!(
        "costs {:.1} ms (frozen {:.1} + faults {:.1}), durable after {:.0} ms, mean of {}, MTBF {mtbf}{bound}{lost}",
        auto.cost_ms, auto.frozen_ms, auto.faults_ms, auto.durable_ms, auto.samples
    )
}

/// How far the bucket is behind.
fn in_words(Uploads { to, newest, waiting, error }: &Uploads) -> String {
    let newest = newest.map_or("none there yet".to_owned(), |newest| format!("newest {newest}"));
    let trouble = error.as_ref().map_or(String::new(), |error| format!(": {}", error.message));
    format!("{newest}, {waiting} waiting, to {to}{trouble}")
}

/// Milliseconds for people.
fn seconds(ms: u64) -> String {
    if ms < 60_000 {
        return format!("{:.1} s", ms as f64 / 1000.0);
    }
    humantime::format_duration(Duration::from_secs(ms / 1000)).to_string()
}

/// Values as blocks, relative to the largest.
fn sparkline(values: &[f64]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().copied().fold(0.0, f64::max);
    let block =
        |value: &f64| if most > 0.0 { BLOCKS[((value / most * 7.0).round() as usize).min(7)] } else { BLOCKS[0] };
    values.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use cr::checkpoint::Activity;
    use cr::describe::Kind;
    use cr::policy::{Auto, Sample};
    use cr::supervise::protocol::Failure;

    use super::*;

    fn status(faults: u64, busy: bool, age: u64) -> Status {
        let activity =
            Activity { write_faults: Some(faults), hot_pages: 512, scans: "full".into(), ..Activity::default() };
        let taken = |id| Taken {
            id,
            kind: Kind::Delta,
            taken_at: "2023-11-14T22:13:20.123Z".into(),
            stored_bytes: 3 << 20,
            frozen_ms: id as f64,
            total_ms: 20.0,
            age_ms: 4000,
        };
        Status {
            pid: 42,
            busy,
            taken: 3,
            failed: 0,
            interval_ms: Some(10_000),
            next_ms: Some(6000),
            auto: None,
            last: (1..=8).map(taken).collect(),
            activity: Some(activity),
            activity_age_ms: age,
            uploads: None,
            compaction: None,
        }
    }

    fn failure(message: &str) -> Failure {
        Failure { code: 124, message: message.to_owned() }
    }

    fn compaction(state: CompactionState) -> Compaction {
        Compaction { from: Some(16), state, age_ms: 4000 }
    }

    #[test]
    fn rates_are_between_samples_and_stand_still_during_a_checkpoint() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(meter.rates(&status(1000, false, 0), at(0)), None);
        assert_eq!(meter.rates(&status(3000, false, 0), at(2)), Some(Rates { faults: 1000.0 }));
        assert_eq!(meter.rates(&status(3000, true, 500), at(3)), Some(Rates { faults: 1000.0 }), "not fresh");
        assert_eq!(meter.rates(&status(3200, false, 0), at(4)), Some(Rates { faults: 100.0 }));
        assert_eq!(meter.rates(&status(7, false, 0), at(5)), Some(Rates { faults: 100.0 }), "a process has ended");
        assert_eq!(meter.rates(&status(57, false, 0), at(6)), Some(Rates { faults: 50.0 }));
        let unknown = Status { activity: None, ..status(0, false, 0) };
        assert_eq!(meter.rates(&unknown, at(7)), None);
    }

    #[test]
    fn a_sample_has_the_documented_names() {
        let view = View::of(Path::new("ckpt"), status(0, false, 0), Some(Rates { faults: 512.4 }));
        let json: serde_json::Value = serde_json::from_str(&view.json()).unwrap();
        let help = super::super::AFTER;
        for name in json.as_object().unwrap().keys() {
            assert!(help.contains(&format!("\"{name}\"")), "{name}");
        }
        assert_eq!(
            (&json["written_mib_s"], &json["faults_s"], &json["hot_mib"]),
            (&2.0.into(), &512.0.into(), &2.0.into())
        );
        assert_eq!(json["last"]["id"], 8);
        assert!(!view.json().contains('\n'));
    }

    #[test]
    fn a_sample_fits_a_line_and_a_screen() {
        let view = View::of(Path::new("ckpt"), status(0, true, 1500), Some(Rates { faults: 512.0 }));
        let line = view.line();
        for part in [
            "2.0 MiB/s",
            "512 faults/s (of 1.5 s ago)",
            "frozen 5.0 6.0 7.0 8.0 ms",
            "last 8 delta, 3.0 MiB, 4.0 s ago",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains('\n') && !line.contains('\x1b'));
        assert!(view.screen(30).iter().all(|line| line.chars().count() <= 30));
        let mut auto = Auto::new(Duration::from_secs(86_400));
        let first = View { auto: Some(auto.reasons()), ..view.clone() }.screen(200).join("\n");
        assert!(first.contains("nothing is measured yet, MTBF 1day"), "{first}");
        let ms = Duration::from_millis;
        auto.learn(Sample { frozen: ms(2), faults: ms(1), durable: ms(30) });
        let shown = View { auto: Some(auto.reasons()), ..view }.screen(200).join("\n");
        assert!(shown.contains("costs 3.0 ms (frozen 2.0 + faults 1.0), durable after 30 ms, mean of 1"), "{shown}");
        assert!(shown.contains("every 10.0 s (auto)") && shown.contains("▂▃▄▅▅▆▇█"), "{shown}");
    }

    #[test]
    fn compactions_and_uploads_are_told() {
        let with = |compaction, uploads| {
            let status = Status { compaction, uploads, ..status(0, false, 0) };
            View::of(Path::new("ckpt"), status, None)
        };
        let up = |newest, waiting, error| Uploads { to: "s3://ckpt/job".into(), newest, waiting, error };
        let nothing = with(None, None);
        assert!(nothing.line().ends_with("compacted none yet"), "{}", nothing.line());
        let states = [
            (CompactionState::UnderWay { left_pages: 512 }, "compacted 16 under way for 4.0 s, 2.0 MiB left"),
            (
                CompactionState::Done { id: 17, stored_bytes: 3 << 20, total_ms: 1500 },
                "compacted 16 into 17, 3.0 MiB, 4.0 s ago, took 1500 ms",
            ),
            (CompactionState::Failed { error: failure("no room") }, "compacted not 16, tried 4.0 s ago: no room"),
        ];
        for (state, words) in states {
            let view = with(Some(compaction(state)), None);
            assert!(view.line().ends_with(words) && view.screen(80).contains(&words.to_owned()), "{}", view.line());
        }
        let all = [
            (up(Some(5), 0, None), "newest 5, 0 waiting, to s3://ckpt/job"),
            (up(None, 2, None), "none there yet, 2 waiting, to s3://ckpt/job"),
            (up(Some(5), 1, Some(failure("it is\ndown"))), "newest 5, 1 waiting, to s3://ckpt/job: it is down"),
        ];
        for (uploads, words) in all {
            let view = with(None, Some(uploads));
            assert!(view.line().ends_with(words), "{}", view.line());
            assert_eq!(view.screen(80).last(), Some(&format!("uploads   {words}")));
        }
    }

    #[test]
    fn what_is_not_known_is_not_made_up() {
        let view = View::of(
            Path::new("ckpt"),
            Status { activity: None, last: Vec::new(), interval_ms: None, ..status(0, false, 0) },
            None,
        );
        let text = view.screen(200).join("\n");
        for part in ["? MiB/s", "none yet", "when it is asked for", "not known yet"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(view.json().contains("\"faults_s\":null"), "{}", view.json());
        assert_eq!(sparkline(&[0.0, 0.0]), "▁▁");
        assert_eq!(sparkline(&[0.0, 7.0]), "▁█");
    }
}
