//! Which checkpoints stay: a pure function of what a store holds and of what is to be kept.
//!
//! The rules mean what backup tools mean by these names, and a checkpoint stays if any of them keeps it:
//!
//! - `last`: the newest N;
//! - `hourly`, `daily`, `weekly`: of each of the newest N hours, days or weeks in which there is a checkpoint, the newest one. Hours
//!   and days are those of UTC, weeks begin on Monday;
//! - `bytes`: the newest ones, as long as all that stays, whatever for, fits.
//!
//! Besides, there always stay: the newest; the newest one that can be restored; the one that a running job's next delta will build
//! on; and whatever one that stays builds on.
//!
//! A checkpoint that cannot be restored takes nobody's place: rules count without it. It goes if they would not keep it even if it
//! could be restored.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What is to be kept. The names are those of the control socket's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// How many of the newest.
    #[serde(rename = "keep_last", skip_serializing_if = "Option::is_none")]
    pub last: Option<u32>,
    /// Of how many hours the newest one.
    #[serde(rename = "keep_hourly", skip_serializing_if = "Option::is_none")]
    pub hourly: Option<u32>,
    /// Of how many days the newest one.
    #[serde(rename = "keep_daily", skip_serializing_if = "Option::is_none")]
    pub daily: Option<u32>,
    /// Of how many weeks the newest one.
    #[serde(rename = "keep_weekly", skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u32>,
    /// The newest ones, as long as all that stays is not more bytes than this.
    #[serde(rename = "keep_bytes", skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// A checkpoint, as far as the rules look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its number. Larger ones are newer, and a parent's is smaller.
    pub id: u64,
    /// What it builds on, if that is known.
    pub parent: Option<u64>,
    /// When it was taken: nanoseconds since 1970 (UTC).
    pub taken_at: u64,
    /// Bytes of its file.
    pub bytes: u64,
    /// Whether it can be restored, as far as its structure and that of all that it builds on tells.
    pub usable: bool,
}

/// Why a checkpoint stays for its own sake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is the newest.
    Newest,
    /// It is the newest one that can be restored.
    NewestIntact,
    /// The running job's next delta builds on it.
    InUse,
    /// One of the newest.
    Last,
    /// The newest of its hour.
    Hourly,
    /// The newest of its day.
    Daily,
    /// The newest of its week.
    Weekly,
    /// There is room for it.
    Bytes,
}

/// What stays, and why: nothing where others that stay build on it, and that is all.
pub type Staying = BTreeMap<u64, BTreeSet<Reason>>;

impl Rules {
    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Those that count checkpoints.
    fn counts(&self) -> impl Iterator<Item = (Reason, usize)> {
        let rules = [
            (Reason::Last, self.last),
            (Reason::Hourly, self.hourly),
            (Reason::Daily, self.daily),
            (Reason::Weekly, self.weekly),
        ];
        rules.into_iter().filter_map(|(reason, count)| Some((reason, count? as usize)))
    }
}

/// What of `all` stays. `in_use` is what a running job's next delta builds on.
pub fn decide(all: &[Candidate], rules: &Rules, in_use: Option<u64>) -> Staying {
    let mut newest_first: Vec<&Candidate> = all.iter().collect();
    newest_first.sort_unstable_by_key(|candidate| std::cmp::Reverse(candidate.id));
    let usable: Vec<&Candidate> = newest_first.iter().copied().filter(|candidate| candidate.usable).collect();

    let mut keeper = Keeper::new(all);
    let newest = newest_first.first().map(|newest| (newest.id, Reason::Newest));
    let intact = usable.first().map(|intact| (intact.id, Reason::NewestIntact));
    for (id, why) in newest.into_iter().chain(intact).chain(in_use.map(|id| (id, Reason::InUse))) {
        keeper.keep(id, why);
    }
    for (rule, count) in rules.counts() {
        let others = newest_of_each(&newest_first, rule, count).filter(|candidate| !candidate.usable);
        for candidate in newest_of_each(&usable, rule, count).chain(others) {
            keeper.keep(candidate.id, rule);
        }
    }
    if let Some(most) = rules.bytes {
        let broken: Vec<&Candidate> = newest_first.iter().copied().filter(|candidate| !candidate.usable).collect();
        for group in [usable, broken] {
            for candidate in group {
                if keeper.bytes_with(candidate.id) > most {
                    break;
                }
                keeper.keep(candidate.id, Reason::Bytes);
            }
        }
    }
    keeper.staying
}

/// The newest of each of the first `count` periods of a rule. That of `last` is the checkpoint itself.
fn newest_of_each<'c>(
    newest_first: &[&'c Candidate],
    rule: Reason,
    count: usize,
) -> impl Iterator<Item = &'c Candidate> {
    const HOUR: u64 = 3_600_000_000_000;
    const DAY: u64 = 24 * HOUR;
    let period = move |candidate: &Candidate| match rule {
        Reason::Hourly => candidate.taken_at / HOUR,
        Reason::Daily => candidate.taken_at / DAY,
        // 1970 began on a Thursday.
        Reason::Weekly => (candidate.taken_at / DAY + 3) / 7,
        _ => candidate.id,
    };
    // A set, as clocks are set back now and then.
    let mut seen = BTreeSet::new();
    newest_first.iter().copied().filter(move |candidate| seen.len() < count && seen.insert(period(candidate)))
}

/// What stays so far. It is always whole: what it builds on is in it too.
struct Keeper<'c> {
    all: BTreeMap<u64, &'c Candidate>,
    staying: Staying,
    bytes: u64,
}

impl<'c> Keeper<'c> {
    fn new(all: &'c [Candidate]) -> Self {
        let all = all.iter().map(|candidate| (candidate.id, candidate)).collect();
        Self { all, staying: Staying::new(), bytes: 0 }
    }

    /// A checkpoint and what it builds on, as far as that does not stay yet.
    fn new_ones(&self, id: u64) -> Vec<&'c Candidate> {
        let look_up = |id: u64| self.all.get(&id).copied().filter(|_| !self.staying.contains_key(&id));
        std::iter::successors(look_up(id), |candidate| candidate.parent.and_then(look_up)).collect()
    }

    /// Bytes of all that would stay, if this one did too.
    fn bytes_with(&self, id: u64) -> u64 {
        self.bytes + self.new_ones(id).iter().map(|candidate| candidate.bytes).sum::<u64>()
    }

    fn keep(&mut self, id: u64, why: Reason) {
        for candidate in self.new_ones(id) {
            self.bytes += candidate.bytes;
            self.staying.insert(candidate.id, BTreeSet::new());
        }
        // One that is not in the store cannot be kept.
        if let Some(reasons) = self.staying.get_mut(&id) {
            reasons.insert(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000_000_000;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    /// A Monday, 2026-11-23 00:00 UTC.
    const MONDAY: u64 = 20_780 * DAY;

    /// Full checkpoints, one at each of these times, of 10 bytes each.
    fn full_at(times: &[u64]) -> Vec<Candidate> {
        let candidate = |(id, &taken_at)| Candidate { id, parent: None, taken_at, bytes: 10, usable: true };
        (1..).zip(times).map(candidate).collect()
    }

    /// `F` a full checkpoint, `d` a delta on the one before; capitals of what cannot be restored are `X` and `x`. A minute apart.
    fn chain(kinds: &str) -> Vec<Candidate> {
        let candidate = |(id, kind): (u64, char)| Candidate {
            id,
            parent: "dx".contains(kind).then_some(id - 1),
            taken_at: MONDAY + id * MINUTE,
            bytes: if "FX".contains(kind) { 100 } else { 10 },
            usable: "Fd".contains(kind),
        };
        (1..).zip(kinds.chars()).map(candidate).collect()
    }

    fn last(count: u32) -> Rules {
        Rules { last: Some(count), ..Rules::default() }
    }

    fn bytes(most: u64) -> Rules {
        Rules { bytes: Some(most), ..Rules::default() }
    }

    fn ids(staying: &Staying) -> Vec<u64> {
        staying.keys().copied().collect()
    }

    /// Those that stay only since others build on them.
    fn only_needed(staying: &Staying) -> Vec<u64> {
        staying.iter().filter(|(_, reasons)| reasons.is_empty()).map(|(id, _)| *id).collect()
    }

    fn of(staying: &Staying, reason: Reason) -> Vec<u64> {
        staying.iter().filter(|(_, reasons)| reasons.contains(&reason)).map(|(id, _)| *id).collect()
    }

    #[test]
    fn the_newest_stay_with_what_they_build_on() {
        let all = chain("FddFddFd");
        let staying = decide(&all, &last(3), None);
        assert_eq!(ids(&staying), [4, 5, 6, 7, 8]);
        assert_eq!(only_needed(&staying), [4, 5]);
        assert_eq!(of(&staying, Reason::Last), [6, 7, 8]);
        assert_eq!(of(&staying, Reason::Newest), [8]);
        assert_eq!(ids(&decide(&all, &last(1), None)), [7, 8]);
        assert_eq!(ids(&decide(&all, &last(100), None)), (1..=8).collect::<Vec<_>>());
        assert_eq!(ids(&decide(&[], &last(1), None)), Vec::<u64>::new());
    }

    #[test]
    fn hours_days_and_weeks_are_those_of_utc_and_count_only_if_there_is_a_checkpoint() {
        let times = [
            MONDAY - DAY - HOUR,            // Saturday 23:00: the week before
            MONDAY - 1,                     // the last moment of Sunday
            MONDAY,                         // the first of Monday
            MONDAY + 10 * MINUTE,           // the same hour
            MONDAY + HOUR - 1,              // its last moment
            MONDAY + 5 * HOUR,              // the next hour that has one
            MONDAY + 3 * DAY,               // Thursday: the next day that has one
            MONDAY + 3 * DAY + 30 * MINUTE, // the same hour
        ];
        let all = full_at(&times);
        let hourly = |count| ids(&decide(&all, &Rules { hourly: Some(count), ..Rules::default() }, None));
        assert_eq!(hourly(1), [8]);
        assert_eq!(hourly(3), [5, 6, 8]);
        assert_eq!(hourly(100), [1, 2, 5, 6, 8]);
        let daily = |count| ids(&decide(&all, &Rules { daily: Some(count), ..Rules::default() }, None));
        assert_eq!(daily(2), [6, 8]);
        assert_eq!(daily(100), [1, 2, 6, 8]);
        let weekly = |count| ids(&decide(&all, &Rules { weekly: Some(count), ..Rules::default() }, None));
        assert_eq!(weekly(1), [8]);
        assert_eq!(weekly(100), [2, 8]);
    }

    #[test]
    fn rules_add_up() {
        let all = full_at(&[MONDAY, MONDAY + HOUR, MONDAY + DAY, MONDAY + DAY + HOUR, MONDAY + DAY + 2 * HOUR]);
        let rules = Rules { last: Some(2), daily: Some(2), ..Rules::default() };
        let staying = decide(&all, &rules, None);
        assert_eq!(ids(&staying), [2, 4, 5]);
        assert_eq!(staying[&5], BTreeSet::from([Reason::Newest, Reason::NewestIntact, Reason::Last, Reason::Daily]));
        assert_eq!(staying[&2], BTreeSet::from([Reason::Daily]));
    }

    /// By a clock that was set back, two parts of one hour are apart.
    #[test]
    fn a_clock_that_was_set_back_gives_no_hour_twice() {
        let all = full_at(&[MONDAY, MONDAY + HOUR, MONDAY + 1, MONDAY + HOUR + 1]);
        let rules = Rules { hourly: Some(9), ..Rules::default() };
        assert_eq!(ids(&decide(&all, &rules, None)), [3, 4]);
    }

    #[test]
    fn what_fits_stays_and_all_that_stays_counts() {
        let all = chain("FddFddFd");
        assert_eq!(ids(&decide(&all, &bytes(1000), None)), (1..=8).collect::<Vec<_>>());
        assert_eq!(ids(&decide(&all, &bytes(350), None)), (1..=8).collect::<Vec<_>>());
        // 8 on 7 are 110, 6 on 5 on 4 are 120 more.
        assert_eq!(ids(&decide(&all, &bytes(230), None)), [4, 5, 6, 7, 8]);
        assert_eq!(ids(&decide(&all, &bytes(229), None)), [7, 8]);
        assert_eq!(of(&decide(&all, &bytes(229), None), Reason::Bytes), [7, 8]);
        // What does not fit stays all the same if it must, and nothing besides.
        let staying = decide(&all, &bytes(1), None);
        assert_eq!((ids(&staying), of(&staying, Reason::Bytes)), (vec![7, 8], Vec::new()));
        // Nothing is passed over to reach an older one that would fit.
        let mut all = full_at(&[1, 2, 3]);
        all[1].bytes = 1000;
        assert_eq!(ids(&decide(&all, &bytes(100), None)), [3]);
        // What other rules keep takes its room.
        let rules = Rules { daily: Some(2), ..bytes(30) };
        let all = full_at(&[MONDAY, MONDAY + DAY, MONDAY + DAY + 1, MONDAY + DAY + 2]);
        assert_eq!(ids(&decide(&all, &rules, None)), [1, 3, 4]);
    }

    #[test]
    fn the_newest_intact_one_stays_where_the_newest_is_not() {
        let all = chain("FddFxx");
        let staying = decide(&all, &last(1), None);
        assert_eq!(ids(&staying), [4, 5, 6], "6 builds on 5, which builds on 4");
        assert_eq!((of(&staying, Reason::Newest), of(&staying, Reason::NewestIntact)), (vec![6], vec![4]));
        assert_eq!(of(&staying, Reason::Last), [4, 6]);
        // Of one that cannot be read it is not known what it builds on.
        let staying = decide(&chain("FddX"), &last(1), None);
        assert_eq!(ids(&staying), [1, 2, 3, 4]);
    }

    #[test]
    fn what_cannot_be_restored_takes_nobodys_place_and_goes_when_its_time_has_come() {
        let all = chain("FFXFXF");
        let kept = |count| ids(&decide(&all, &last(count), None));
        assert_eq!(kept(1), [6]);
        // 5 would be the second newest; the second newest that can be restored is 4.
        assert_eq!(kept(2), [4, 5, 6]);
        assert_eq!(kept(3), [2, 4, 5, 6]);
        assert_eq!(kept(4), [1, 2, 3, 4, 5, 6]);
        assert_eq!(ids(&decide(&all, &bytes(300), None)), [2, 4, 6]);
        assert_eq!(ids(&decide(&all, &bytes(10_000), None)), [1, 2, 3, 4, 5, 6]);
    }

    /// A delta without its parents goes like any other, and what it names is not looked for.
    #[test]
    fn a_delta_whose_parents_are_missing_may_go() {
        let mut all = chain("xFF");
        all[0].parent = Some(77);
        assert_eq!(ids(&decide(&all, &last(2), None)), [2, 3]);
        assert_eq!(ids(&decide(&all, &last(3), None)), [1, 2, 3]);
    }

    #[test]
    fn what_the_next_delta_builds_on_stays() {
        let all = chain("FddFd");
        let staying = decide(&all, &last(1), Some(2));
        assert_eq!(ids(&staying), [1, 2, 4, 5]);
        assert_eq!(of(&staying, Reason::InUse), [2]);
        assert_eq!(ids(&decide(&all, &last(1), Some(99))), [4, 5], "it is gone, and no harm is done");
    }

    /// Whatever the rules: what stays is whole, and the newest usable one is in it.
    #[test]
    fn nothing_that_stays_is_without_its_parents() {
        let mut state = 1u64;
        let mut below = |end: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % end
        };
        for _ in 0..2000 {
            let count = below(12);
            let mut all = Vec::new();
            for id in 1..=count {
                // Forks, too: after a restore of an older one.
                let parent = (id > 1 && below(3) > 0).then(|| 1 + below(id - 1));
                let broken =
                    below(5) == 0 || parent.is_some_and(|p| !all.iter().any(|c: &Candidate| c.id == p && c.usable));
                all.push(Candidate { id, parent, taken_at: below(9) * DAY / 3, bytes: 1 + below(9), usable: !broken });
            }
            let mut some = |most| (below(3) == 0).then(|| 1 + below(most));
            let rules = Rules {
                last: some(4).map(|n| n as u32),
                hourly: some(4).map(|n| n as u32),
                daily: some(4).map(|n| n as u32),
                weekly: some(4).map(|n| n as u32),
                bytes: some(30),
            };
            let in_use = some(12);
            let staying = decide(&all, &rules, in_use);
            for candidate in all.iter().filter(|c| staying.contains_key(&c.id)) {
                let whole = candidate.parent.is_none_or(|parent| staying.contains_key(&parent));
                assert!(whole, "{candidate:?} without its parent: {all:?} {rules:?} {in_use:?}");
                let needed = all.iter().any(|c| c.parent == Some(candidate.id) && staying.contains_key(&c.id));
                assert!(needed || !staying[&candidate.id].is_empty(), "{candidate:?} stays for nothing");
            }
            let intact = all.iter().rev().find(|c| c.usable);
            assert!(intact.is_none_or(|c| staying.contains_key(&c.id)));
            assert!(all.last().is_none_or(|c| staying.contains_key(&c.id)));
        }
    }
}
