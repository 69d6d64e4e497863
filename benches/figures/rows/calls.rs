//! A job that does nothing but system calls: alone, tracked, and beside another job that is tracked. No checkpoint is taken
//! meanwhile.

use anyhow::Result;
use cr_bench::commands::{Attached, StoreDir};
use cr_bench::guest::Guest;
use cr_bench::sample::Samples;
use cr_bench::strings;

use crate::Setting;
use crate::report::Row;

const TRACKED: f64 = 1.05;
/// The job says of each how long it took.
const KINDS: [&str; 3] = ["getppid", "pread", "pipe"];

/// Milliseconds of all calls, and of each kind.
#[derive(Default)]
struct Times {
    all: Samples,
    kinds: [Samples; KINDS.len()],
}

impl Times {
    fn round(&mut self, guest: &mut Guest) -> Result<()> {
        self.all.0.push(guest.round()?);
        for (kind, samples) in KINDS.iter().zip(&mut self.kinds) {
            samples.0.push(guest.said(kind)?);
        }
        Ok(())
    }

    /// What lies between the rounds before and those after others: what drifts is in both.
    fn halfway_to(&self, after: &Self) -> Self {
        let each = |before: &Samples, after: &Samples| {
            Samples(before.0.iter().zip(&after.0).map(|(a, b)| f64::midpoint(*a, *b)).collect())
        };
        let kinds = std::array::from_fn(|kind| each(&self.kinds[kind], &after.kinds[kind]));
        Self { all: each(&self.all, &after.all), kinds }
    }

    /// All rounds but the first, and one more.
    fn without_first(&self, last: &Self) -> Self {
        let each = |all: &Samples, last: &Samples| Samples([all.0.get(1..).unwrap_or_default(), &last.0].concat());
        let kinds = std::array::from_fn(|kind| each(&self.kinds[kind], &last.kinds[kind]));
        Self { all: each(&self.all, &last.all), kinds }
    }
}

/// One process, to which a controller comes and goes: nothing else differs between the rounds. Each is compared with those before and
/// after it.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let folder = setting.tmpfs.path();
    let mut guest = Guest::start(folder, "calls", &strings(&[&"--work", &3000]), None)?;
    let mut other = Guest::start(folder, "idle", &[], None)?;
    let [mut alone, mut again, mut tracked, mut beside] = [(); 4].map(|()| Times::default());
    guest.round()?;
    for _ in 0..setting.args.repetitions {
        alone.round(&mut guest)?;
        let store = StoreDir::new(folder);
        let controller = Attached::to(guest.pid, &store, &[])?;
        tracked.round(&mut guest)?;
        controller.let_go()?;
        drop(store);
        again.round(&mut guest)?;
        let store = StoreDir::new(folder);
        let controller = Attached::to(other.pid, &store, &[])?;
        beside.round(&mut guest)?;
        controller.let_go()?;
    }
    let mut after = Times::default();
    after.round(&mut guest)?;
    guest.kill()?;
    other.kill()?;

    // Rounds that differ in nothing differ by so much.
    let identical = again.all.over(&alone.all);
    let around_tracked = alone.halfway_to(&again);
    let around_beside = again.halfway_to(&alone.without_first(&after));
    let noise = identical.0.iter().map(|ratio| ratio.max(1.0 / ratio)).fold(1.0, f64::max);
    let row = |what: &str, times: &Times, base: &Times, bound: f64| {
        let mut behind = vec![
            ("ms".to_owned(), times.all.clone()),
            ("alone ms".to_owned(), base.all.clone()),
            ("alone over alone ×".to_owned(), identical.clone()),
        ];
        for ((kind, samples), base) in KINDS.iter().zip(&times.kinds).zip(&base.kinds) {
            behind.push((format!("{kind} ×"), samples.over(base)));
        }
        Row {
            name: format!("running time of a system-call-heavy job {what}: over alone"),
            figures: times.all.over(&base.all),
            bound,
            unit: "×",
            behind,
        }
    };
    Ok(vec![
        row("while it is tracked, no checkpoint taken", &tracked, &around_tracked, TRACKED),
        row("while another job is tracked (bound: two rounds alone)", &beside, &around_beside, noise),
    ])
}
